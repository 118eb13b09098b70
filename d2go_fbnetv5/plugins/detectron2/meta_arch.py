"""The search and our own models as Detectron2 meta-architectures; Lite R-CNN is in `rcnn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor

from d2go_fbnetv5 import models, search
from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.engine.recipes.models import class_names, model_arguments, searched_network
from d2go_fbnetv5.engine.recipes.search import search_arguments
from d2go_fbnetv5.plugins.detectron2.catalog_samples import info_of
from d2go_fbnetv5.plugins.detectron2.convert import require_whole
from d2go_fbnetv5.plugins.detectron2.datasets import open_set, read_by_us, register_datasets
from d2go_fbnetv5.plugins.detectron2.deploy import ClassifierOnImage, OnDicts, SegmenterOnImage
from d2go_fbnetv5.plugins.detectron2.rcnn import head_options
from d2go_fbnetv5.plugins.detectron2.samples import to_instances, to_sample
from d2go_fbnetv5.plugins.detectron2.solver import SearchGuard
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

Batch = Sequence[dict[str, Any]]
OUR_MODELS = ("ImageClassifier", "LiteDepth", "LiteMaskFormer", "LiteRCNN", "SeveralHeads")


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """Return what the first of DATASETS.TRAIN labels, from its metadata; the set is opened where that tells nothing."""
    register_datasets(cfg)
    if read_by_us(cfg):
        return open_set(cfg, cfg.DATASETS.TRAIN[0]).info
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    if metadata.get("info") is None and metadata.get("thing_classes") is None:
        DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
        metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])  # some loaders replace the entry
    return metadata.get("info") or info_of(metadata)


def set_numbers_of_classes(cfg: CfgNode) -> None:
    """Give Detectron2's keys the numbers of classes that the first of DATASETS.TRAIN labels, in place."""
    info = dataset_info(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(info.box_names)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(info.sem_seg_names)


def describe_model(cfg: CfgNode) -> None:
    """Leave NETWORK_FILE in OUTPUT_DIR for a model that our own trainer has under the same names, so that its
    `predict` opens the folder."""
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind in OUR_MODELS:
        recipe = get_recipe(kind)
        network = searched_network(cfg, class_names(cfg, dataset_info(cfg)))
        if kind == "LiteRCNN":
            network = replace(network, head=head_options(cfg))
        network.write(cfg.OUTPUT_DIR, recipe.kind)


class SampleModel:
    """Makes a model of ours a meta-architecture: it can be made of a configuration, runs channels last, and
    takes Detectron2's dataset dicts."""

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Any]]:
        return super().forward([to_sample(data, self.device) for data in batch])


class _SearchedSampleModel(SampleModel):
    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        require_whole(self.backbone)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        info = dataset_info(cfg)
        return model_arguments(cfg, cls, info, class_names(cfg, info))


@META_ARCH_REGISTRY.register()
class MultitaskSearch(SampleModel, search.MultitaskSearch):
    """Algorithm 4: a batch -> the dict of losses. ``after_step()`` is to be called after each optimizer step.

    Takes the arguments of `d2go_fbnetv5.MultitaskSearch`, or a configuration. SEED, 0 or more, seeds the
    sampled topologies.

    Args:
        base_lr, arch_lr_factor: what an optimizer's groups are compared with, see `SearchGuard`.

    Raises:
        ValueError: SEARCH.ALGORITHM is another one; those run in `d2go_fbnetv5.train_net`. In training: the optimizer
            treats the probabilities as weights, or `after_step` was not called after its step.
    """

    @configurable
    def __init__(
        self, *, base_lr: float = 0.0, arch_lr_factor: float | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        require_whole(self.supernet)
        self.guard = SearchGuard(self, base_lr, arch_lr_factor)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if cfg.SEARCH.ALGORITHM != "multitask":
            raise InputError(
                f"SEARCH.ALGORITHM is {cfg.SEARCH.ALGORITHM!r}, allowed in Detectron2 and D2Go: multitask "
                "(d2go_fbnetv5.train_net has the others)"
            )
        if cfg.SEARCH.FROM:
            raise InputError(
                f"SEARCH.FROM is {cfg.SEARCH.FROM!r}, allowed in Detectron2 and D2Go: '' (d2go_fbnetv5.train_net adds "
                "tasks to a search)"
            )
        return {
            "base_lr": cfg.SOLVER.BASE_LR,
            "arch_lr_factor": cfg.SEARCH.ARCH_LR_FACTOR,
            **search_arguments(cfg, dataset_info(cfg), cfg.SEED),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Any]]:
        if self.training:
            self.guard.before_forward()
        return super().forward(batch)

    def after_step(self) -> None:
        super().after_step()
        self.guard.stepped = False


@META_ARCH_REGISTRY.register()
class ImageClassifier(_SearchedSampleModel, models.ImageClassifier):
    """MBPool and a linear layer on Path 3; reads ``class_label``, predicts ``class_scores``."""

    def __prepare_scriptable__(self) -> OnDicts:
        return OnDicts(ClassifierOnImage(self).scriptable(), "class_scores")


@META_ARCH_REGISTRY.register()
class LiteMaskFormer(_SearchedSampleModel, models.LiteMaskFormer):
    """Lite MaskFormer; reads ``sem_seg`` (H x W), predicts ``sem_seg``: K x height x width scores, as Detectron2's
    evaluators read them."""

    def predict(self, batch: Batch) -> list[dict[str, Tensor]]:
        outputs = []
        for data, scores in zip(batch, self.pixel_scores(batch), strict=True):
            height, width = size = scores.shape[-2:]
            size_out = data.get("height", height), data.get("width", width)
            outputs.append({"sem_seg": sem_seg_postprocess(scores, size, *size_out)})
        return outputs

    def __prepare_scriptable__(self) -> OnDicts:
        return OnDicts(SegmenterOnImage(self).scriptable(), "sem_seg")


@META_ARCH_REGISTRY.register()
class LiteDepth(_SearchedSampleModel, models.LiteDepth):
    """LiteDepth; reads ``depth`` (H x W), predicts ``depth``, height x width."""


@META_ARCH_REGISTRY.register()
class SeveralHeads(_SearchedSampleModel, models.SeveralHeads):
    """Several heads on one backbone; predicts what each does: ``class_scores``, ``instances`` as Detectron2's
    detectors, ``sem_seg``, the class of each of height x width pixels, and ``depth``."""

    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        found = super().predict(batch)
        return [to_instances(output, data) for output, data in zip(found, batch, strict=True)]
