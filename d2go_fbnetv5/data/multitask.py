"""The multitask format: one JSON index beside images and label maps.

The index is COCO's detection format with a few more fields, so a COCO file is an index already::

    {"images": [{"id": 1, "file_name": "images/1.jpg", "height": 480, "width": 640,
                 "class_label": 3, "sem_seg_file_name": "maps/1.png", "has_boxes": true}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0}],
     "categories": [{"id": 18, "name": "dog"}],
     "class_names": ["cat", ...], "sem_seg_names": ["sky", ...]}

Every label is optional. ``class_label`` needs ``class_names``, ``sem_seg_file_name`` needs ``sem_seg_names``. In an
index with ``annotations`` an image without any is an image without objects, unless ``"has_boxes": false`` says that
nobody labelled it. Category ids may have gaps: in sorted order they become the labels 0, 1, ... File names are
relative to the folder of images, by default the index's own. Label maps are PNG files of 8 or 16 bits, 255 = don't
care.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.data.images import check_labels, read_image, read_label_map
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo

# Boxes of real data sets exceed their images by rounding errors; those are cut off, more is an error.
_BOX_TOLERANCE = 0.5


@register_dataset("multitask")
class MultitaskDataset(torch.utils.data.Dataset):
    """Reads the multitask format (see this module's docstring).

    Args:
        index_json: path of the index.
        image_root: folder that file names are relative to; the index's own by default.

    Raises, on opening:
        FileNotFoundError: no such index or folder.
        ValueError: the index breaks a rule; names the file, the image or entry, and what is allowed.
    ``dataset[i]`` raises FileNotFoundError and ValueError for files that are missing, broken, of another size
    than the index says, or hold labels out of range.
    """

    def __init__(self, index_json: str | Path, image_root: str | Path | None = None) -> None:
        self.path = Path(index_json)
        self.root = Path(image_root) if image_root is not None else self.path.parent
        index = _load_json(self.path)
        if not self.root.is_dir():
            raise FileNotFoundError(f"folder of images {self.root} does not exist")
        self._images = _entries(self.path, index, "images", ("id", "file_name", "height", "width"))
        if not self._images:
            raise ValueError(f"{self.path}: 'images' is empty, at least one image is needed")
        _check_unique(self.path, "images", [image["id"] for image in self._images])
        class_names = _names(self.path, index, "class_names")
        sem_seg_names = _names(self.path, index, "sem_seg_names")
        self._check_images(len(class_names), len(sem_seg_names))
        self.info = DatasetInfo(class_names, self._read_boxes(index), sem_seg_names)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> np.ndarray:
        """N x 2: height and width of every image, as the index has them."""
        return np.array([(image["height"], image["width"]) for image in self._images])

    def __getitem__(self, index: int) -> dict:
        """The sample: ``image`` 3 x H x W uint8 and the labels that the index has for it."""
        entry = self._images[index]
        size = (entry["height"], entry["width"])
        sample: dict[str, Any] = {"image": read_image(self.root / entry["file_name"], size)}
        if entry.get("class_label") is not None:
            sample["class_label"] = entry["class_label"]
        if self.info.box_names and entry.get("has_boxes", True):
            rows = self._order[self._starts[index] : self._starts[index + 1]]
            sample["boxes"] = torch.from_numpy(self._boxes[rows].astype(np.float32))
            sample["box_labels"] = torch.from_numpy(self._labels[rows])
            if self._crowd is not None:
                sample["box_is_crowd"] = torch.from_numpy(self._crowd[rows])
        if entry.get("sem_seg_file_name") is not None:
            path = self.root / entry["sem_seg_file_name"]
            labels = read_label_map(path, size)
            check_labels(path, labels, len(self.info.sem_seg_names), self.info.sem_seg_ignore)
            sample["sem_seg"] = torch.from_numpy(labels)
        sample.update(image_id=entry["id"], height=size[0], width=size[1])
        return sample

    def _check_images(self, num_classes: int, num_maps: int) -> None:
        """Types and ranges of the fields of every image."""
        ignore = DatasetInfo.sem_seg_ignore
        if num_maps > ignore:
            raise ValueError(
                f"{self.path}: 'sem_seg_names' has {num_maps} names, allowed are at most {ignore}, "
                f"because {ignore} means don't care"
            )
        for image in self._images:
            where = f"{self.path}: image {image['id']} ({image['file_name']})"
            if not _is_int(image["id"]):
                raise ValueError(f"{where}: id is {image['id']!r}, it must be an integer")
            for key in ("height", "width"):
                if not _is_int(image[key]) or image[key] < 1:
                    raise ValueError(f"{where}: {key} is {image[key]!r}, it must be an integer of at least 1")
            for key in ("file_name", "sem_seg_file_name"):
                if not isinstance(image.get(key, ""), str | None):
                    raise ValueError(f"{where}: {key} is {image[key]!r}, it must be a string")
            if image.get("sem_seg_file_name") is not None and not num_maps:
                raise ValueError(f"{where}: has sem_seg_file_name, but the index has no 'sem_seg_names'")
            if not isinstance(image.get("has_boxes", True), bool):
                raise ValueError(f"{where}: has_boxes is {image['has_boxes']!r}, allowed are true and false")
            label = image.get("class_label")
            if label is None:
                continue
            if not num_classes:
                raise ValueError(f"{where}: has class_label, but the index has no 'class_names'")
            if not _is_int(label) or not 0 <= label < num_classes:
                raise ValueError(f"{where}: class_label is {label!r}, allowed are 0 to {num_classes - 1}")

    def _read_boxes(self, index: dict) -> tuple[str, ...]:
        """Keeps the annotations as arrays, grouped by image; gives the names of the box classes."""
        if "annotations" not in index:
            return ()
        annotations = _entries(self.path, index, "annotations", ("id", "image_id", "category_id", "bbox"))
        categories = _entries(self.path, index, "categories", ("id", "name"))
        if not categories:
            raise ValueError(f"{self.path}: 'categories' is empty, but the index has 'annotations'")
        _check_unique(self.path, "annotations", [annotation["id"] for annotation in annotations])
        _check_unique(self.path, "categories", [category["id"] for category in categories])
        categories = sorted(categories, key=lambda category: category["id"])
        labels = {category["id"]: label for label, category in enumerate(categories)}
        places = {image["id"]: place for place, image in enumerate(self._images)}
        for annotation in annotations:
            if annotation["image_id"] not in places:
                raise ValueError(
                    f"{self.path}: annotation {annotation['id']} has image_id {annotation['image_id']!r}, "
                    "but 'images' has no such id"
                )
            if annotation["category_id"] not in labels:
                raise ValueError(
                    f"{self.path}: annotation {annotation['id']} of image {annotation['image_id']} has category_id "
                    f"{annotation['category_id']!r}, allowed are {_shorten(labels)}"
                )
        owners = np.array([places[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
        self._labels = np.array([labels[a["category_id"]] for a in annotations], dtype=np.int64)
        self._boxes = self._check_boxes(annotations, owners)
        has_crowd = any("iscrowd" in annotation for annotation in annotations)
        crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)
        self._crowd = crowd if has_crowd else None
        self._order = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(owners[self._order], np.arange(len(self._images) + 1))
        return tuple(category["name"] for category in categories)

    def _check_boxes(self, annotations: list[dict], owners: np.ndarray) -> np.ndarray:
        """M x 4 float64 XYXY boxes, inside their images."""
        try:
            xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(
                -1, 4
            )
            if len(xywh) != len(annotations):
                raise ValueError("other lengths than 4")
        except (TypeError, ValueError):
            for annotation in annotations:
                box = annotation["bbox"]
                if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                    raise ValueError(
                        f"{self.path}: annotation {annotation['id']} of image {annotation['image_id']} has bbox "
                        f"{box!r}, it must be four numbers: x, y, width, height"
                    ) from None
            raise
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        limits = np.tile(self.sizes[:, ::-1], 2)[owners].reshape(-1, 4)
        outside = (boxes < -_BOX_TOLERANCE).any(1) | (boxes > limits + _BOX_TOLERANCE).any(1)
        boxes = np.clip(boxes, 0, limits)
        # Written so that NaN is bad, too.
        good = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) & (xywh[:, 2:] > 0).all(1) & ~outside
        if not good.all():
            number = int(np.flatnonzero(~good)[0])
            annotation, (width, height) = annotations[number], limits[number, :2]
            fault = "reaches outside of it" if outside[number] else "has no area"
            raise ValueError(
                f"{self.path}: annotation {annotation['id']} of image {annotation['image_id']}: bbox "
                f"{annotation['bbox']} (x, y, width, height) {fault}, the image is {width}x{height}"
            )
        return boxes


def _load_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"index {path} does not exist")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"index {path} is not valid JSON: {error}") from None
    if not isinstance(index, dict):
        raise ValueError(f"index {path} holds a {type(index).__name__}, it must be an object with 'images'")
    return index


def _entries(path: Path, index: dict, key: str, required: tuple[str, ...]) -> list[dict]:
    entries = index.get(key)
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: {key!r} is {'missing' if entries is None else 'no list'}, a list is needed"
        )
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: entry {number} of {key!r} is {entry!r}, it must be an object")
        for field in required:
            if field not in entry:
                name = f" (id {entry['id']})" if "id" in entry else ""
                raise ValueError(f"{path}: entry {number}{name} of {key!r} lacks {field!r}")
    return entries


def _names(path: Path, index: dict, key: str) -> tuple[str, ...]:
    names = index.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key!r} must be a list of strings")
    return tuple(names)


def _check_unique(path: Path, key: str, ids: list) -> None:
    seen = set()
    for identity in ids:
        if not isinstance(identity, int | str):
            raise ValueError(f"{path}: {key!r} has the id {identity!r}, it must be an integer")
        if identity in seen:
            raise ValueError(f"{path}: {key!r} has the id {identity} more than once")
        seen.add(identity)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shorten(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values if len(values) <= 20 else [*values[:19], "...", values[-1]])
