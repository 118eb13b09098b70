"""Draws labels and predictions of test images into TensorBoard, as TENSORBOARD.TEST_VIS_* of D2Go say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from d2go.utils.visualization import VisualizationEvaluator
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.visualizer import Visualizer
from fvcore.common.config import CfgNode
from torch import Tensor

from d2go_fbnetv5.plugins.detectron2.datasets import EVALUATOR_TYPE
from d2go_fbnetv5.plugins.detectron2.samples import to_output
from d2go_fbnetv5.tasks.images import label_size


def visualization_evaluator(
    cfg: CfgNode, tbx_writer: Any, mapper: Any, dataset_name: str, **options: Any
) -> DatasetEvaluator:
    """Return what draws the images of a set: for a set of ours `SampleDrawings`, else D2Go's own."""
    is_ours = MetadataCatalog.get(dataset_name).get("evaluator_type") == EVALUATOR_TYPE
    kind: Callable[..., DatasetEvaluator] = SampleDrawings if is_ours else VisualizationEvaluator
    return kind(cfg, tbx_writer, mapper, dataset_name, **options)


class SampleDrawings(DatasetEvaluator):
    """Draws samples, which bring their labels and name no file; gives no metric."""

    def __init__(
        self,
        cfg: CfgNode,
        tbx_writer: Any,
        mapper: Any,
        dataset_name: str,
        train_iter: int | None = None,
        tag_postfix: str | None = None,
    ) -> None:
        self.writer, self.tag = tbx_writer._writer, f"{dataset_name}{tag_postfix or ''}"
        self.metadata = MetadataCatalog.get(dataset_name)
        self.step = cfg.SOLVER.MAX_ITER if train_iter is None else train_iter
        self.most, self.period = cfg.TENSORBOARD.TEST_VIS_MAX_IMAGES, cfg.TENSORBOARD.TEST_VIS_WRITE_PERIOD
        self.reset()

    def reset(self) -> None:
        self._batches, self._drawn = 0, 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        drawn = self.period > 0 and self._batches % self.period == 0
        self._batches += 1
        for data, output in zip(inputs, outputs, strict=True):
            if not drawn or self._drawn >= self.most:
                return
            self._drawn += 1
            for name, drawing in (("GT", self.labels(data)), ("Pred", self.predictions(data, output))):
                tag = f"{self.tag}/{data['image_id']}/{name}"
                self.writer.add_image(tag, drawing, self.step, dataformats="HWC")

    def labels(self, data: Mapping[str, Any]) -> np.ndarray:
        """Draw the labels of a sample: height x width x 3."""
        canvas = self._canvas(data)
        if "sem_seg" in data:
            canvas.draw_sem_seg(torch.as_tensor(data["sem_seg"]).cpu(), area_threshold=0, alpha=0.5)
        if "boxes" in data:
            names = [self.metadata.thing_classes[int(label)] for label in data["box_labels"]]
            boxes = torch.as_tensor(data["boxes"]).reshape(-1, 4).cpu()
            canvas.overlay_instances(boxes=boxes.numpy(), labels=names)
        if "class_label" in data:
            self._name(canvas, int(data["class_label"]))
        return canvas.get_output().get_image()

    def predictions(self, data: Mapping[str, Any], output: Mapping[str, Any]) -> np.ndarray:
        """Draw what a model gives for a sample: height x width x 3."""
        canvas = self._canvas(data)
        labels = to_output(output, data).get("sem_seg")
        if labels is not None:
            canvas.draw_sem_seg(labels.cpu(), area_threshold=0, alpha=0.5)
        if "instances" in output:
            canvas.draw_instance_predictions(output["instances"].to("cpu"))
        if "class_scores" in output:
            self._name(canvas, int(output["class_scores"].argmax()))
        return canvas.get_output().get_image()

    def _canvas(self, data: Mapping[str, Any]) -> Visualizer:
        """The image in its original size, in which labels and predictions are."""
        image: Tensor = data["image"][None].float()
        image = F.interpolate(image, label_size(data), mode="bilinear").round()[0]
        return Visualizer(image.permute(1, 2, 0).byte().cpu().numpy(), metadata=self.metadata)

    def _name(self, canvas: Visualizer, label: int) -> None:
        canvas.draw_text(self.metadata.info.class_names[label], (canvas.output.width / 2, 0))
