"""The paper's heads (Appendix G) under Detectron2's RPN, StandardROIHeads and SemanticSegmentor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, RPN_HEAD_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    DefaultAnchorGenerator,
    build_anchor_generator,
)
from torch import Tensor, nn

from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.network import checked_head
from d2go_fbnetv5.models import LiteBoxHead, LiteMaskFormer
from d2go_fbnetv5.models import LiteRPNHead as _LiteRPNHead
from d2go_fbnetv5.models.lite_heads import WIDTHS, box_channels, rpn_channels
from d2go_fbnetv5.models.lite_maskformer import segment_scores
from d2go_fbnetv5.models.maskformer_loss import SegmentPrediction, segments_of
from d2go_fbnetv5.models.search_heads import without_backbone
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import require_each


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors as `d2go_fbnetv5.models.LiteRCNN` has them (and torchvision): sides rounded to whole pixels around
    the centre, all sizes of the first aspect ratio first. So that a detector's weights fit both."""

    __constants__ = ["box_dim"]  # as the base class annotates it, which scripting looks for in the very class

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        anchors = []
        for ratio in aspect_ratios:  # height / width
            for size in sizes:
                half = (size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2)
                anchors.append([-half[0], -half[1], half[0], half[1]])
        return torch.tensor(anchors).round()


def _options(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.FBNETV5.HEAD; of a model with another backbone, whose configuration may lack our keys, none."""
    ours = cfg.MODEL.get("FBNETV5")
    return {} if ours is None else as_dict(ours.HEAD)


def _width(cfg: CfgNode) -> float:
    width = _options(cfg).get("width", 1.0)
    require_each(WIDTHS, " of MODEL.FBNETV5.HEAD", width=width)
    return width


@RPN_HEAD_REGISTRY.register()
class LiteRPNHead(_LiteRPNHead):
    """Lite R-CNN's RPN head; its levels share weights, so they must have the same channels."""

    @configurable
    def __init__(self, in_channels: int, num_anchors: int = 15, width: float = 1.0) -> None:
        super().__init__(in_channels, num_anchors, rpn_channels(width))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        channels = {shape.channels for shape in input_shape}
        anchors = set(build_anchor_generator(cfg, input_shape).num_anchors)
        if len(channels) > 1 or len(anchors) > 1:
            raise InputError(
                f"MODEL.RPN.IN_FEATURES have {sorted(channels)} channels and {sorted(anchors)} anchors, allowed for "
                "LiteRPNHead: one number of each"
            )
        return {"in_channels": channels.pop(), "num_anchors": anchors.pop(), "width": _width(cfg)}


@ROI_BOX_HEAD_REGISTRY.register()
class LiteRoIBoxHead(LiteBoxHead):
    """Lite R-CNN's box head on a region's 6 x 6 features."""

    @configurable
    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__(in_channels, box_channels(width))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {"in_channels": input_shape.channels, "width": _width(cfg)}

    @property
    @torch.jit.unused
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self.out_channels)


@SEM_SEG_HEADS_REGISTRY.register()
class LiteMaskFormerHead(nn.Module):
    """Lite MaskFormer's decoders and loss, for Detectron2's SemanticSegmentor.

    Args:
        input_shape: of the features, with ``path1`` and ``path3`` among them.
        num_classes: K.
        ignore_value: the label of pixels that have no part in the loss.
        options: of `LiteMaskFormer`, as MODEL.FBNETV5.HEAD has them.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        num_classes: int,
        ignore_value: int = 255,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in LiteMaskFormer.in_features if name not in input_shape]
        if missing:
            raise InputError(
                f"LiteMaskFormerHead needs {missing[0]}, the backbone gives {', '.join(input_shape)}"
            )
        self.ignore_value = ignore_value
        self.stride = input_shape["path1"].stride
        channels = {name: shape.channels for name, shape in input_shape.items()}
        model = without_backbone(
            LiteMaskFormer, channels, num_classes, ignore=ignore_value, **(options or {})
        )
        self.auxiliary_loss = model.auxiliary_loss
        self.pixel_decoder = model.pixel_decoder
        self.transformer_decoder = model.transformer_decoder
        self.segmentation = model.segmentation
        self.loss = model.loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "options": checked_head(LiteMaskFormer, _options(cfg), "MODEL.FBNETV5.HEAD"),
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Training: None and the losses. Evaluation: N x K x H x W scores at the padded images' size, and {}.

        Args:
            features: by name; others than ``path1`` and ``path3`` are left alone.
            targets: N x H x W label maps, padded with ``ignore_value``.
        """
        pixels = self.pixel_decoder(features["path1"])
        predictions = [
            SegmentPrediction(*self.segmentation(queries, pixels))
            for queries in self.transformer_decoder(features["path3"])
        ]
        if self.training:
            segments = [segments_of(target, self.ignore_value) for target in targets]
            return None, self.loss(predictions if self.auxiliary_loss else predictions[-1:], segments)
        height, width = (side * self.stride for side in features["path1"].shape[-2:])
        size = (height, width)
        last = zip(predictions[-1].class_logits, predictions[-1].mask_logits, strict=True)
        return torch.stack([segment_scores(*image, padded=size, size=size) for image in last]), {}
