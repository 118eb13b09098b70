"""The search, Lite MaskFormer and the classifier as Detectron2 meta-architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor

from d2go_fbnetv5 import models, search
from d2go_fbnetv5.engine.model_recipes import model_arguments
from d2go_fbnetv5.engine.search_recipe import search_arguments
from d2go_fbnetv5.models.lite_maskformer import valid_features
from d2go_fbnetv5.plugins.detectron2.datasets import register_datasets
from d2go_fbnetv5.plugins.detectron2.heads import segment_scores
from d2go_fbnetv5.plugins.detectron2.samples import to_sample
from d2go_fbnetv5.tasks.base import DatasetInfo

Batch = Sequence[dict[str, Any]]


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """What the first of DATASETS.TRAIN labels, from its metadata; the set is opened where that tells nothing."""
    register_datasets(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    if metadata.get("info") is None and metadata.get("thing_classes") is None:
        DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    info = metadata.get("info")
    return info or DatasetInfo(
        box_names=tuple(metadata.get("thing_classes", ())),
        sem_seg_names=tuple(metadata.get("stuff_classes", ())),
        sem_seg_ignore=metadata.get("ignore_label", DatasetInfo.sem_seg_ignore),
    )


@META_ARCH_REGISTRY.register()
class MultitaskSearch(search.MultitaskSearch):
    """Algorithm 4: a batch -> the dict of losses. ``after_step()`` is to be called after each optimizer step.

    Takes the arguments of `d2go_fbnetv5.MultitaskSearch`, or a configuration. SEED, 0 or more, seeds the
    sampled topologies.
    """

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return search_arguments(cfg, dataset_info(cfg), cfg.SEED)

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Any]]:
        device = self.distribution.probs.device
        return super().forward([to_sample(data, device) for data in batch])


@META_ARCH_REGISTRY.register()
class ImageClassifier(models.ImageClassifier):
    """MBPool and a linear layer on Path 3; reads ``class_label``, predicts ``class_scores``."""

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        info = dataset_info(cfg)
        return model_arguments(cfg, cls, info, len(info.class_names))

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        return super().forward([to_sample(data, self.pixel_mean.device) for data in batch])


@META_ARCH_REGISTRY.register()
class LiteMaskFormer(models.LiteMaskFormer):
    """Lite MaskFormer; reads ``sem_seg`` (H x W), predicts ``sem_seg``: K x height x width scores, as Detectron2's
    evaluators read them."""

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        info = dataset_info(cfg)
        return model_arguments(cfg, cls, info, len(info.sem_seg_names))

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        return super().forward([to_sample(data, self.pixel_mean.device) for data in batch])

    def predict(self, batch: Batch) -> list[dict[str, Tensor]]:
        images, sizes = self.images(batch)
        features = self.backbone(images)
        valid = valid_features(sizes, images.shape[-2:], features["path3"].shape[-2:], images.device)
        scores = segment_scores(self.head(features, valid)[-1], images.shape[-2:])
        return [
            {
                "sem_seg": sem_seg_postprocess(
                    score, size, data.get("height", size[0]), data.get("width", size[1])
                )
            }
            for score, size, data in zip(scores, sizes, batch, strict=True)
        ]
