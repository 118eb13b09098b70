"""Lets D2Go's exporter save the three models: image in, tensors out, batch norm folded, traced or scripted."""

from __future__ import annotations

from typing import Any

import torch
from d2go.export.api import PredictorExportConfig
from d2go.modeling.meta_arch.rcnn import RCNN_PREPARE_FOR_EXPORT_REGISTRY, default_rcnn_prepare_for_export
from detectron2.export import scripting_with_instances
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from fvcore.common.config import CfgNode
from mobile_cv.predictor.api import FuncInfo
from torch import Tensor, nn

from d2go_fbnetv5.export.network.fold import folded
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer
from d2go_fbnetv5.plugins.detectron2.deploy import ClassifierOnImage, SegmenterOnImage
from d2go_fbnetv5.utils.errors import InputError

FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
}


class FirstImage:
    """Takes the exported model's input, the image of a batch of one, as floats in 0..255."""

    def __call__(self, batch: list[dict[str, Any]]) -> Tensor:
        if len(batch) != 1:
            raise InputError(f"a batch of {len(batch)} images, allowed for an exported model: 1")
        return batch[0]["image"].float()


class AsOutput:
    """A prediction as the eager model gives it, from the exported model's tensor."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, batch: Any, inputs: Any, outputs: Tensor) -> list[dict[str, Tensor]]:
        return [{self.key: outputs}]


class AsInstances:
    """A detector's prediction, from the scripted one's tensors."""

    def __call__(
        self, batch: list[dict[str, Any]], inputs: Any, outputs: tuple[Tensor, ...]
    ) -> list[dict[str, Instances]]:
        boxes, classes, scores, size = outputs
        found = Instances((int(size[0]), int(size[1])))
        found.pred_boxes, found.pred_classes, found.scores = Boxes(boxes), classes, scores
        return [{"instances": detector_postprocess(found, batch[0]["height"], batch[0]["width"])}]


def classifier_export(model: ImageClassifier, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> K class probabilities."""
    module = ClassifierOnImage(model)
    return _export(_for(predictor_type, module), AsOutput, key="class_scores")


def segmentation_export(model: LiteMaskFormer, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> K x H x W scores."""
    module = SegmenterOnImage(model)
    return _export(_for(predictor_type, module), AsOutput, key="sem_seg")


@RCNN_PREPARE_FOR_EXPORT_REGISTRY.register()
def fbnetv5_rcnn_prepare_for_export(
    model: GeneralizedRCNN, cfg: CfgNode, inputs: Any, predictor_type: str
) -> PredictorExportConfig:
    """D2Go's default with batch norms of our blocks folded. Scripted it is 3 x H x W -> M x 4 boxes in the image's
    pixels, M classes, M scores and the image's height and width, as it is traced."""
    model = folded(model)
    if "@scripting" not in predictor_type:
        return default_rcnn_prepare_for_export(model, cfg, inputs, predictor_type)
    scripted = scripting_with_instances(_DetectorOnImage(model).eval(), FIELDS)
    return _export(_Scripted(scripted), AsInstances)


class _DetectorOnImage(nn.Module):
    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.model.inference([{"image": image}], None, False)[0]
        size = torch.tensor(found.image_size)
        return found.pred_boxes.tensor, found.pred_classes, found.scores, size


class _Scripted(nn.Module):
    """A module that is scripted already, for D2Go's exporter, which scripts all that it is given."""

    def __init__(self, detector: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.detector(image)


def _for(predictor_type: str, module: Any) -> nn.Module:
    return module.scriptable().eval() if "@scripting" in predictor_type else module.eval()


def _export(model: nn.Module, postprocess: type, **options: str) -> PredictorExportConfig:
    return PredictorExportConfig(
        model=model,
        data_generator=lambda batch: (FirstImage()(batch),),
        preprocess_info=FuncInfo.gen_func_info(FirstImage, params={}),
        postprocess_info=FuncInfo.gen_func_info(postprocess, params=options),
    )
