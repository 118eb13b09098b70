"""Our data sets in Detectron2's catalogs, and the mapper that transforms their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import get_event_storage
from fvcore.common.config import CfgNode

from d2go_fbnetv5.data import list_datasets
from d2go_fbnetv5.engine.build import Data, build_data, build_transforms, open_dataset
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.plugins.detectron2.catalog_samples import CatalogSamples, catalog_samples
from d2go_fbnetv5.plugins.detectron2.samples import to_detectron2
from d2go_fbnetv5.tasks.base import DatasetInfo

EVALUATOR_TYPE = "fbnetv5"


def is_ours(cfg: CfgNode, name: str) -> bool:
    """Return whether a name in DATASETS is one of FBNETV5_DATA.DATASETS or of our readers."""
    return name in cfg.FBNETV5_DATA.DATASETS or name in list_datasets()


def all_ours(cfg: CfgNode) -> bool:
    """Return whether every name in DATASETS is."""
    return all(is_ours(cfg, name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def read_by_us(cfg: CfgNode) -> bool:
    """Return whether a run takes its samples through our transforms and evaluators: of its own sets every run does, and
    a search of any set of the catalog."""
    return cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch" or all_ours(cfg)


def open_set(cfg: CfgNode, name: str) -> CatalogDataset | CatalogSamples:
    """Open a set of DATASETS as one of samples, or return it if it is open; raises as its reader does."""
    return DatasetCatalog.get(name) if is_ours(cfg, name) else catalog_samples(name)


def register_datasets(cfg: CfgNode) -> None:
    """Register those of DATASETS that are ours in DatasetCatalog and MetadataCatalog, from the paths in ``cfg``.

    A set is opened when it is asked for. One that an earlier call registered with other options is replaced; a name
    that others have registered keeps its meaning. First the modules of IMPORTS are imported, whose readers count too.
    """
    import_modules(cfg)
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if not is_ours(cfg, name):
            continue
        opener, known = _Opener(cfg.clone(), name), DatasetCatalog.data.get(name)
        if isinstance(known, _Opener) and known.options != opener.options:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, opener)


class _Opener:
    """Opens the set once, when the catalog calls; Detectron2 takes a torch data set in place of a list of dicts."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        self.cfg, self.name = cfg, name
        self.options = cfg.FBNETV5_DATA.DATASETS.get(name)

    def __call__(self) -> CatalogDataset:
        return self.dataset

    @cached_property
    def dataset(self) -> CatalogDataset:
        dataset = CatalogDataset(open_dataset(self.cfg, self.name))
        info: DatasetInfo = dataset.info
        MetadataCatalog.get(self.name).set(
            evaluator_type=EVALUATOR_TYPE,
            info=info,
            thing_classes=list(info.box_names),
            stuff_classes=list(info.sem_seg_names),
            ignore_label=info.sem_seg_ignore,
        )
        return dataset


class CatalogDataset(torch.utils.data.Dataset):
    """Any data set of ours as a torch data set of samples."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.info: DatasetInfo = dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    # Which a set need not have.
    @property
    def label_counts(self) -> dict[str, int]:
        return self.dataset.label_counts

    @property
    def image_path(self) -> Callable[[int], Path]:
        return self.dataset.image_path


def open_data(cfg: CfgNode) -> Data:
    """Open the data of a run that is `read_by_us`."""
    return build_data(cfg, cfg.SEED, open_set)


class TrainLoader:
    """Endless batches for Detectron2's and D2Go's trainers, which start at the iteration that these start with.

    Order and augmentation are our own trainer's: a function of (SEED, position), the same for any number of
    workers, and after a resume.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.data.train_batches(get_event_storage().iter):
            yield [to_detectron2(sample, training=True) for sample in batch]


class SampleMapper:
    """A sample of the catalog -> the transformed one, in Detectron2's form as well (`to_detectron2`).

    Args:
        transform: called with the sample and a seed.
        is_train: whether seeds are drawn, from numpy's generator as in Detectron2's own mapper.
    """

    def __init__(self, transform: Callable[[dict[str, Any], int], dict[str, Any]], is_train: bool) -> None:
        self.transform, self.is_train = transform, is_train

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> SampleMapper:
        """By INPUT and FBNETV5_DATA."""
        return cls(build_transforms(cfg)[0 if is_train else 1], is_train)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        seed = int(np.random.randint(2**31)) if self.is_train else 0
        return to_detectron2(self.transform(sample, seed), self.is_train)
