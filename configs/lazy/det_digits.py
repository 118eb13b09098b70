"""Lite R-CNN (Appendix G.2) of Detectron2's modules: all digits."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads

from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.plugins.detectron2 import (
    LiteRCNN,
    LiteRoIBoxHead,
    LiteRPNHead,
    RoundedAnchorGenerator,
)

from .common import FAMILY, NORMALIZATION, adamw, digit_scenes, lr_multiplier, searched_backbone, train

CHANNELS = build_family(FAMILY).channels[1]  # of Path 1, whose features have stride 8

model = L(LiteRCNN)(
    backbone=searched_backbone("det", ["path1"]),
    proposal_generator=L(RPN)(
        in_features=["path1"],
        head=L(LiteRPNHead)(in_channels=CHANNELS, num_anchors=15),
        anchor_generator=L(RoundedAnchorGenerator)(
            sizes=[[12, 20, 32, 46, 66]], aspect_ratios=[[1.0, 1.5, 2.2]], strides=[8], offset=0.0
        ),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=[300, 200],
        post_nms_topk=[100, 30],
        nms_thresh=0.7,
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes=10,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=["path1"],
        box_pooler=L(ROIPooler)(output_size=6, scales=[1 / 8], sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_head=L(LiteRoIBoxHead)(in_channels=CHANNELS),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=160),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            test_score_thresh=0.05,
        ),
    ),
    input_format="RGB",
    **NORMALIZATION,
)
dataloader = digit_scenes(128, batch_size=16)
optimizer = adamw(0.002)
