"""Lite MaskFormer: which digit each pixel belongs to."""

from detectron2.config import LazyCall as L

from d2go_fbnetv5.plugins.detectron2 import LiteMaskFormer

from .common import NORMALIZATION, adamw, digit_scenes, lr_multiplier, searched_backbone, train

model = L(LiteMaskFormer)(
    backbone=searched_backbone("seg", ["path1", "path3"]),
    num_classes=11,
    num_queries=12,
    dim=128,
    feedforward_dim=512,
    dropout=0.0,
    **NORMALIZATION,
)
dataloader = digit_scenes(192, batch_size=8)
optimizer = adamw(0.001)
train["max_iter"] = 4500
