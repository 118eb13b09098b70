"""Lets D2Go's exporter save the models: image in, tensors out, batch norm folded, traced or scripted."""

from __future__ import annotations

from collections.abc import Sequence
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
from torch.ao.quantization import QuantWrapper
from torch.backends import xnnpack

from d2go_fbnetv5.export.network.fold import folded
from d2go_fbnetv5.models import ImageClassifier, LiteDepth, LiteMaskFormer, SeveralHeads
from d2go_fbnetv5.plugins.detectron2.deploy import (
    ClassifierOnImage,
    DepthOnImage,
    SegmenterOnImage,
    SeveralOnImage,
)
from d2go_fbnetv5.plugins.detectron2.samples import to_instances
from d2go_fbnetv5.tasks.depth import depth_outputs
from d2go_fbnetv5.tasks.images import label_map, label_size
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


class AsDepth:
    """A depth as the eager model gives it, from the exported model's H x W."""

    def __call__(self, batch: list[dict[str, Any]], inputs: Any, outputs: Tensor) -> list[dict[str, Tensor]]:
        return depth_outputs(outputs.log()[None], batch)


class AsSeveral:
    """A prediction of several heads as the eager model gives it, from the exported model's tensors.

    Args:
        tasks: of the heads, in the order of the tensors.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tasks

    def __call__(
        self, batch: list[dict[str, Any]], inputs: Any, outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        (data,), values = batch, iter(outputs)
        found: dict[str, Any] = {}
        for task in self.tasks:
            if task == "det":
                found |= {"boxes": next(values), "scores": next(values), "labels": next(values)}
            elif task == "seg":
                found["sem_seg"] = label_map(next(values), label_size(data))
            elif task == "depth":
                found |= AsDepth()(batch, inputs, next(values))[0]
            else:
                found["class_scores"] = next(values)
        return [to_instances(found, data)]


def classifier_export(model: ImageClassifier, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> K class probabilities."""
    module = ClassifierOnImage(model)
    return _export(_for(predictor_type, module), AsOutput, key="class_scores")


def segmentation_export(model: LiteMaskFormer, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> K x H x W scores."""
    module = SegmenterOnImage(model)
    return _export(_for(predictor_type, module), AsOutput, key="sem_seg")


def depth_export(model: LiteDepth, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> H x W depths."""
    return _export(_for(predictor_type, DepthOnImage(model)), AsDepth)


def several_export(model: SeveralHeads, predictor_type: str) -> PredictorExportConfig:
    """3 x H x W -> the tensors of `SeveralOnImage`, always scripted."""
    _check(predictor_type)
    scripted = torch.jit.script(SeveralOnImage(model).scriptable().eval())
    return _export(_ScriptedSeveral(scripted), AsSeveral, tasks=list(model.singles()))


@RCNN_PREPARE_FOR_EXPORT_REGISTRY.register()
def fbnetv5_rcnn_prepare_for_export(
    model: GeneralizedRCNN, cfg: CfgNode, inputs: Any, predictor_type: str
) -> PredictorExportConfig:
    """D2Go's default with batch norms of our blocks folded. Scripted it is 3 x H x W -> M x 4 boxes in the image's
    pixels, M classes, M scores and the image's height and width, as it is traced."""
    _check(predictor_type)
    model = folded(model)
    if "@scripting" not in predictor_type:
        return default_rcnn_prepare_for_export(model, cfg, inputs, predictor_type)
    _script_islands(model)
    scripted = scripting_with_instances(_DetectorOnImage(model).eval(), FIELDS)
    return _export(_Scripted(scripted), AsInstances)


def _script_islands(model: nn.Module) -> None:
    """Script what `prepare_for_quant` has put in 8 bits, in place: Detectron2's scripting makes ``training`` a constant
    of all that is not scripted yet, and torch's quantised layers set it when they are loaded."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantWrapper):
                setattr(module, name, torch.jit.script(child))


class _DetectorOnImage(nn.Module):
    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.model.inference([{"image": image}], None, False)[0]
        size = torch.tensor(found.image_size)
        return found.pred_boxes.tensor, found.pred_classes, found.scores, size


class _Scripted(nn.Module):
    """A module that is scripted already, for D2Go's exporter, which saves only what it has traced or scripted."""

    def __init__(self, detector: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.detector(image)


class _ScriptedSeveral(nn.Module):
    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.network(image)


def _check(predictor_type: str) -> None:
    if "mobile" in predictor_type and not xnnpack.enabled:
        raise InputError(
            f"--predictor-types has {predictor_type}, allowed with torch {torch.__version__}, which is built without "
            "XNNPACK: torchscript, torchscript_int8 (torch 2.9 has it; d2go_fbnetv5.export has ExecuTorch for phones)"
        )


def _for(predictor_type: str, module: Any) -> nn.Module:
    _check(predictor_type)
    return module.scriptable().eval() if "@scripting" in predictor_type else module.eval()


def _export(model: nn.Module, postprocess: type, **options: str | list[str]) -> PredictorExportConfig:
    return PredictorExportConfig(
        model=model,
        data_generator=lambda batch: (FirstImage()(batch),),
        preprocess_info=FuncInfo.gen_func_info(FirstImage, params={}),
        postprocess_info=FuncInfo.gen_func_info(postprocess, params=options),
    )
