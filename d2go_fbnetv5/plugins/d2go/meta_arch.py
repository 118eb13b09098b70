"""The meta-architectures in D2Go's registry, with what its optimizer and exporter ask of them."""

from __future__ import annotations

from typing import Any

from d2go.export.api import PredictorExportConfig
from d2go.modeling.meta_arch.rcnn import GeneralizedRCNN
from d2go.registry.builtin import META_ARCH_REGISTRY
from fvcore.common.config import CfgNode
from torch import nn

from d2go_fbnetv5.plugins.d2go.export import (
    classifier_export,
    depth_export,
    segmentation_export,
    several_export,
)
from d2go_fbnetv5.plugins.d2go.quantization import prepare_for_quant
from d2go_fbnetv5.plugins.detectron2 import meta_arch
from d2go_fbnetv5.plugins.detectron2.rcnn import LiteRCNNMixin
from d2go_fbnetv5.utils.errors import InputError


@META_ARCH_REGISTRY.register()
class MultitaskSearch(meta_arch.MultitaskSearch):
    """The search; its probabilities are an optimizer group of their own."""

    def get_optimizer_param_groups(self, cfg: CfgNode) -> list[dict[str, Any]]:
        groups = self.param_groups(cfg.SOLVER.BASE_LR, cfg.SEARCH.ARCH_LR_FACTOR)
        return [
            {**group, "param_names": ["distribution.probs"]} for group in groups if group["name"] == "arch"
        ]


class _Quantizable:
    def prepare_for_quant(self, cfg: CfgNode) -> nn.Module:
        return prepare_for_quant(self, cfg)


@META_ARCH_REGISTRY.register()
class ImageClassifier(_Quantizable, meta_arch.ImageClassifier):
    """The classifier."""

    def prepare_for_export(self, cfg: CfgNode, inputs: Any, predictor_type: str) -> PredictorExportConfig:
        return classifier_export(self, predictor_type)


@META_ARCH_REGISTRY.register()
class LiteMaskFormer(_Quantizable, meta_arch.LiteMaskFormer):
    """Lite MaskFormer."""

    def prepare_for_export(self, cfg: CfgNode, inputs: Any, predictor_type: str) -> PredictorExportConfig:
        return segmentation_export(self, predictor_type)


@META_ARCH_REGISTRY.register()
class LiteRCNN(LiteRCNNMixin, GeneralizedRCNN):
    """Lite R-CNN, with what D2Go's GeneralizedRCNN adds to Detectron2's: export and quantisation."""


class _InFloats:
    def prepare_for_quant(self, cfg: CfgNode) -> nn.Module:
        raise InputError(
            f"a {type(self).__name__} in 8 bits, allowed by D2Go: a classifier, a Lite MaskFormer or a Lite R-CNN"
        )


@META_ARCH_REGISTRY.register()
class LiteDepth(_InFloats, meta_arch.LiteDepth):
    """LiteDepth."""

    def prepare_for_export(self, cfg: CfgNode, inputs: Any, predictor_type: str) -> PredictorExportConfig:
        return depth_export(self, predictor_type)


@META_ARCH_REGISTRY.register()
class SeveralHeads(_InFloats, meta_arch.SeveralHeads):
    """Several heads on one backbone."""

    def prepare_for_export(self, cfg: CfgNode, inputs: Any, predictor_type: str) -> PredictorExportConfig:
        return several_export(self, predictor_type)
