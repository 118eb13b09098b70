"""A classifier that names the largest digit."""

from detectron2.config import LazyCall as L

from d2go_fbnetv5.plugins.detectron2 import ImageClassifier

from .common import NORMALIZATION, adamw, digit_scenes, lr_multiplier, searched_backbone, train

model = L(ImageClassifier)(backbone=searched_backbone("cls", ["path3"]), num_classes=10, **NORMALIZATION)
dataloader = digit_scenes(96, batch_size=32)
optimizer = adamw(0.003)
