"""Lite R-CNN as a meta-architecture: Detectron2's GeneralizedRCNN, configured by our keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor

from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.network import checked_head
from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.models.base import zero_loss
from d2go_fbnetv5.plugins.detectron2.config import use_lite_rcnn
from d2go_fbnetv5.plugins.detectron2.deploy import ScriptableRCNN
from d2go_fbnetv5.utils.errors import InputError


def lite_rcnn_config(cfg: CfgNode) -> CfgNode:
    """Return a copy of ``cfg`` in which Detectron2's keys say what MODEL.META_ARCHITECTURE LiteRCNN with the options of
    MODEL.FBNETV5.HEAD says in our own trainer.

    Raises:
        ValueError: an option that the model does not have or of another type, or one that Detectron2's modules cannot
            follow.
    """
    cfg = cfg.clone()
    cfg.defrost()
    use_lite_rcnn(cfg)
    options = checked_head(get_recipe("LiteRCNN").kind, as_dict(cfg.MODEL.FBNETV5.HEAD), "MODEL.FBNETV5.HEAD")
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InputError(
                f"MODEL.FBNETV5.HEAD has {name!r}, allowed under Detectron2: {', '.join(_OPTIONS)}"
            )
        _OPTIONS[name](cfg, value)
    return cfg


def head_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the options of MODEL.FBNETV5.HEAD, and beside them what Detectron2's own keys say of the detections."""
    options = as_dict(cfg.MODEL.FBNETV5.HEAD)
    theirs = {"score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST}
    return {**theirs, "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE, **options}


def _anchor_sizes(cfg: CfgNode, sizes: Sequence[float]) -> None:
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(sizes)]


def _aspect_ratios(cfg: CfgNode, ratios: Sequence[float]) -> None:
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(ratios)]


def _train_proposals(cfg: CfgNode, counts: Sequence[int]) -> None:
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = counts


def _test_proposals(cfg: CfgNode, counts: Sequence[int]) -> None:
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = counts


def _regions_per_image(cfg: CfgNode, count: int) -> None:
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = count


def _score_threshold(cfg: CfgNode, score: float) -> None:
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score


def _read_by_our_heads(cfg: CfgNode, value: Any) -> None:
    """Leave everything as it is: Detectron2 has no such key, and our heads read ours."""


def _max_detections(cfg: CfgNode, count: int) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = count


_OPTIONS: dict[str, Callable[[CfgNode, Any], None]] = {
    "anchor_sizes": _anchor_sizes,
    "aspect_ratios": _aspect_ratios,
    "train_proposals": _train_proposals,
    "test_proposals": _test_proposals,
    "regions_per_image": _regions_per_image,
    "score_threshold": _score_threshold,
    "max_detections": _max_detections,
    "width": _read_by_our_heads,
}


class LiteRCNNMixin:
    """Adds to GeneralizedRCNN its configuration, samples without labels of boxes, and channels last, which
    is the faster layout for convolutions of few channels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(lite_rcnn_config(cfg))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Training: losses over the samples that have ``instances``, zero if none has."""
        if self.training:
            batched_inputs = [data for data in batched_inputs if "instances" in data]
            if not batched_inputs:
                names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
                return {name: zero_loss(*self.parameters()) for name in names}
        return super().forward(batched_inputs)

    def __prepare_scriptable__(self) -> ScriptableRCNN:
        return ScriptableRCNN.of(self)


@META_ARCH_REGISTRY.register()
class LiteRCNN(LiteRCNNMixin, GeneralizedRCNN):
    """Lite R-CNN (Appendix G.2) of Detectron2's own modules with our backbone and heads."""
