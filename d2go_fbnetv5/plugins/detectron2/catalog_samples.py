"""Data sets that others have put into Detectron2's catalog, read as samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from d2go_fbnetv5.data.images import check_labels, read_image, read_label_map
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError


def info_of(metadata: Any) -> DatasetInfo:
    """Return what a set of the catalog labels, by its metadata."""
    return DatasetInfo(
        box_names=tuple(metadata.get("thing_classes", ())),
        sem_seg_names=tuple(metadata.get("stuff_classes", ())),
        sem_seg_ignore=metadata.get("ignore_label", DatasetInfo.sem_seg_ignore),
    )


def catalog_samples(name: str) -> CatalogSamples:
    """Return a set of the catalog, read once for as long as it is the same entry.

    Raises:
        InputError: the catalog has no such set, or one whose boxes are not upright.
    """
    if name not in DatasetCatalog:
        raise InputError(
            f"DATASETS names {name}: neither FBNETV5_DATA.DATASETS nor Detectron2's catalog has it"
        )
    return _read(name, DatasetCatalog.data[name])


@lru_cache(maxsize=8)
def _read(name: str, load: Callable[[], Any]) -> CatalogSamples:
    return CatalogSamples(name, DatasetCatalog.get(name), MetadataCatalog.get(name))


class CatalogSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """Detectron2's dicts of a set as samples with boxes (``annotations``) or label maps (``sem_seg_file_name``).

    Boxes are cut off at the border of their image, those without area are left out; masks, key points and panoptic maps
    are ignored.

    Args:
        name: of the set, for messages.
        dicts: of the catalog.
        metadata: with ``thing_classes`` and ``stuff_classes``.
    """

    def __init__(self, name: str, dicts: Any, metadata: Any) -> None:
        self.name, self.dicts = name, dicts
        self.info = info_of(metadata)
        for record in dicts:
            for annotation in record.get("annotations", ()):
                if annotation["bbox_mode"] in (BoxMode.XYWHA_ABS, BoxMode.XYXY_REL, BoxMode.XYWH_REL):
                    raise InputError(
                        f"the set {name} has boxes of {BoxMode(annotation['bbox_mode']).name}, allowed for a search: "
                        "upright ones in pixels"
                    )

    def __len__(self) -> int:
        return len(self.dicts)

    @property
    def sizes(self) -> np.ndarray:
        """Return N x 2: height and width of every image, as the catalog has them."""
        return np.array([(record["height"], record["width"]) for record in self.dicts])

    @property
    def label_counts(self) -> dict[str, int]:
        objects = (a for record in self.dicts for a in record.get("annotations", ()))
        return {
            "boxes": sum(not annotation.get("iscrowd", 0) for annotation in objects),
            "sem_seg": sum("sem_seg_file_name" in record for record in self.dicts),
        }

    def image_path(self, index: int) -> Path:
        return Path(PathManager.get_local_path(self.dicts[index]["file_name"]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``image_id``, ``height``, ``width``, and ``boxes`` or ``sem_seg``."""
        record = self.dicts[index]
        size = (record["height"], record["width"])
        sample = {
            "image": read_image(self.image_path(index), size),
            "image_id": record.get("image_id", index),
            "height": size[0],
            "width": size[1],
        }
        if "annotations" in record:
            sample.update(_boxes(record["annotations"], size))
        if "sem_seg_file_name" in record:
            path = PathManager.get_local_path(record["sem_seg_file_name"])
            labels = read_label_map(path, size)
            check_labels(path, labels, len(self.info.sem_seg_names), self.info.sem_seg_ignore)
            sample["sem_seg"] = torch.from_numpy(labels)
        return sample


def _boxes(annotations: list[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    height, width = size
    boxes = np.array(
        [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
        dtype=np.float64,
    ).reshape(-1, 4)
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    found = {
        "boxes": torch.from_numpy(boxes[kept]),
        "box_labels": torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)[kept],
        "box_is_crowd": torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)[
            kept
        ],
    }
    if annotations and all("area" in a for a in annotations):
        found["box_areas"] = torch.tensor([a["area"] for a in annotations], dtype=torch.float64)[kept]
    return found
