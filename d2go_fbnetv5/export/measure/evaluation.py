"""The metrics of an exported file on the test set of the training that its model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.engine.build import build_data
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.evaluation import Batch, evaluate
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.engine.train import CONFIG_FILE
from d2go_fbnetv5.export.formats.base import Run, get_format, split_int8
from d2go_fbnetv5.export.images import padded_image
from d2go_fbnetv5.export.metadata import outputs_by_task
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.models.lite_maskformer import weighed_masks
from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.tasks.depth import depth_outputs
from d2go_fbnetv5.tasks.images import image_size, label_map, label_size
from d2go_fbnetv5.utils.errors import InputError

Sizes = tuple[int, int]


class ExportedModel(nn.Module):
    """A file with the contract of its model in evaluation mode: a list of samples -> one dict a sample.

    Args:
        model: that the file was exported from; it says how images are padded.
        run: the file.
        size: (height, width) that it takes alone; None if it takes others.
    """

    def __init__(self, model: SearchedModel, run: Run, size: Sizes | None = None) -> None:
        super().__init__()
        self._size = size
        self._model = [model]  # in a list, for it is no part of this one
        self._run = run

    def forward(self, batch: Batch) -> list[dict[str, Tensor]]:
        outputs = []
        for sample in batch:
            image = padded_image(self._model[0], sample["image"])
            if self._size is not None and image_size(image) != self._size:
                raise InputError(
                    f"the file takes images of {self._size[0]}x{self._size[1]} alone, found one of "
                    f"{image.shape[-2]}x{image.shape[-1]}"
                )
            output: dict[str, Tensor] = {}
            for task, found in outputs_by_task(self._model[0], self._run(image)).items():
                output |= _OUTPUTS[task](found, image_size(image), sample)
            outputs.append(output)
        return outputs


def evaluate_run(
    run: str, format: str, path: Path, described: Mapping[str, Any], max_images: int
) -> dict[str, float]:
    """The metrics that are of all classes, on the first ``max_images`` of the training's test set; {} where ``run`` is
    no finished training.

    Args:
        run: OUTPUT_DIR of the training.
        format: such as "executorch-int8".
        path, described: the file and what its export returned.
    """
    if not Path(run).is_dir():
        return {}
    cfg, model = load_cfg(Path(run, CONFIG_FILE)), from_run(run).model
    data = build_data(cfg, max(cfg.SEED, 0))
    kind = get_format(split_int8(format)[0])
    size = None if described["dynamic"] else tuple(described["image_sizes"]["max"])
    exported = ExportedModel(model, kind.load(path, described), size)
    metrics = evaluate(exported, data.eval_batches(max_images), model.evaluator(data.info))
    return {name: value for name, value in metrics.items() if "-" not in name}


def _class_scores(found: tuple[Tensor, ...], padded: Sizes, sample: Sample) -> dict[str, Tensor]:
    return {"class_scores": found[0][0]}


def _label_map(found: tuple[Tensor, ...], padded: Sizes, sample: Sample) -> dict[str, Tensor]:
    scores = weighed_masks(found[0][0], found[1][0], padded, sample["image"].shape[-2:])
    return {"sem_seg": label_map(scores, label_size(sample))}


def _detections(found: tuple[Tensor, ...], padded: Sizes, sample: Sample) -> dict[str, Tensor]:
    boxes, scores, labels = found
    size = sample["image"].shape[-2:]
    there = scores > 0
    limit = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    return {
        "boxes": boxes[there].clamp(min=0).minimum(limit),
        "scores": scores[there],
        "labels": labels[there],
    }


def _depth(found: tuple[Tensor, ...], padded: Sizes, sample: Sample) -> dict[str, Tensor]:
    return depth_outputs(found[0][0].log(), [sample])[0]


_OUTPUTS = {"cls": _class_scores, "seg": _label_map, "det": _detections, "depth": _depth}
