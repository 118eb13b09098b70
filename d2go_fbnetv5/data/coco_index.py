"""What the readers of COCO-like JSON share: entries with the right fields, images and boxes as arrays."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from d2go_fbnetv5.data.index_arrays import BoxArrays, Strings, own_areas
from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

# Boxes of real data sets exceed their images by rounding errors; those are cut off.
_BOX_TOLERANCE = 0.5


def read_boxes(path: Path, index: dict, strict: bool = True) -> tuple[tuple[str, ...], BoxArrays]:
    """The names of an index's categories, which in the order of their ids are the labels 0, 1, ..., and its boxes.

    Args:
        path: of the index, for messages.
        index: has ``images`` (checked already), ``annotations`` and ``categories``.
        strict: a box outside its image or without area is an error; otherwise it is cut off at the image's border
            and dropped, with one warning, if nothing is left.

    Raises:
        ValueError: names the file, the annotation, its image, and what is allowed.
    """
    images = index["images"]
    annotations = entries(path, index, "annotations", ("id", "image_id", "category_id", "bbox"))
    categories = entries(path, index, "categories", ("id", "name"))
    if not categories:
        raise InputError(f"{path}: 'categories' is empty, but the index has 'annotations'")
    check_unique(path, "annotations", annotations)
    check_unique(path, "categories", categories)
    categories = sorted(categories, key=lambda category: category["id"])
    places = {image["id"]: place for place, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(categories)}
    _check_references(path, annotations, places, labels)

    owners = np.array([places[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)
    limits = np.tile(sizes, 2)[owners].reshape(-1, 4)
    boxes, fault = _corners(path, annotations, limits)
    bad = np.flatnonzero(fault)
    if len(bad) and strict:
        annotation, (width, height) = annotations[bad[0]], limits[bad[0], :2]
        raise InputError(
            f"{path}: annotation {annotation['id']} of image {annotation['image_id']}: bbox "
            f"{annotation['bbox']} (x, y, width, height) {_FAULTS[fault[bad[0]]]}, "
            f"the image is {width:.0f}x{height:.0f}"
        )
    empty = ~((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    if empty.any():
        logger.warning("%s: left out %d boxes without area inside their image", path, empty.sum())

    order = np.argsort(owners, kind="stable")
    order = order[~empty[order]]
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)
    has_crowd = any("iscrowd" in annotation for annotation in annotations)
    boxes = boxes[order].astype(np.float32)
    return tuple(category["name"] for category in categories), BoxArrays(
        starts=np.searchsorted(owners[order], np.arange(len(images) + 1)),
        boxes=boxes,
        labels=np.array([labels[a["category_id"]] for a in annotations], dtype=np.int32)[order],
        crowd=crowd[order] if has_crowd else None,
        areas=_areas(path, [annotations[place] for place in order], boxes),
    )


_FAULTS = ("", "has no area", "reaches outside of it")


def _corners(path: Path, annotations: list[dict], limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M x 4 float64 XYXY boxes cut off at their images' borders, and for each its place in _FAULTS."""
    try:
        xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    except (TypeError, ValueError):
        xywh = None
    if xywh is None or (annotations and xywh.shape != (len(annotations), 4)):
        for annotation in annotations:
            box = annotation["bbox"]
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                raise InputError(
                    f"{path}: annotation {annotation['id']} of image {annotation['image_id']} has bbox {box!r}, "
                    "it must be four numbers: x, y, width, height"
                )
    xywh = xywh.reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    outside = (boxes < -_BOX_TOLERANCE).any(1) | (boxes > limits + _BOX_TOLERANCE).any(1)
    boxes = np.clip(boxes, 0, limits)
    # Written so that NaN counts as no area, too.
    area = (xywh[:, 2:] > 0).all(1) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return boxes, np.where(outside, 2, np.where(area, 0, 1))


def _areas(path: Path, annotations: list[dict], boxes: np.ndarray) -> np.ndarray | None:
    """What the annotations give as their ``area``, the box's own where there is none; None if all are the boxes'."""
    own = own_areas(boxes)
    areas = own.copy()
    for place, annotation in enumerate(annotations):
        area = annotation.get("area")
        if area is None:
            continue
        if not _is_number(area) or not 0 <= area <= sys.float_info.max:
            raise InputError(
                f"{path}: annotation {annotation['id']} of image {annotation['image_id']} has area {area!r}, "
                "it must be a number of at least 0"
            )
        areas[place] = area
    return None if (areas == own).all() else areas


def _check_references(path: Path, annotations: list[dict], places: dict, labels: dict) -> None:
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        if not is_int(image) or image not in places:
            raise InputError(
                f"{path}: annotation {annotation['id']} has image_id {image!r}, but 'images' has no such id"
            )
        if not is_int(category) or category not in labels:
            raise InputError(
                f"{path}: annotation {annotation['id']} of image {image} has category_id {category!r}, "
                f"allowed are {_shorten(labels)}"
            )


def load_json(path: Path) -> dict:
    """The JSON object in a file. FileNotFoundError or ValueError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"index {path} does not exist")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"index {path} is not valid JSON: {error}") from None
    if not isinstance(index, dict):
        raise InputError(f"index {path} holds a {type(index).__name__}, it must be an object with 'images'")
    return index


def read_images(path: Path, index: dict) -> list[dict]:
    """The index's images, at least one, each with a unique id, a file name and a size of integers."""
    images = entries(path, index, "images", ("id", "file_name", "height", "width"))
    if not images:
        raise InputError(f"{path}: 'images' is empty, at least one image is needed")
    check_unique(path, "images", images)
    for image in images:
        where = f"{path}: image {image['id']} ({image['file_name']})"
        for key in ("height", "width"):
            if not is_int(image[key]) or image[key] < 1:
                raise InputError(f"{where}: {key} is {image[key]!r}, it must be an integer of at least 1")
        if not isinstance(image["file_name"], str):
            raise InputError(f"{where}: file_name is {image['file_name']!r}, it must be a string")
    return images


def image_arrays(images: list[dict]) -> tuple[np.ndarray, np.ndarray, Strings]:
    """N ids (int64), N x 2 heights and widths (int32), and N file names."""
    return (
        np.array([image["id"] for image in images], dtype=np.int64),
        np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2),
        Strings.of(image["file_name"] for image in images),
    )


def names_of(path: Path, index: dict, key: str) -> tuple[str, ...]:
    """The list of strings ``index[key]``, empty if it is missing; else a ValueError."""
    names = index.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {key!r} must be a list of strings")
    return tuple(names)


def entries(path: Path, index: dict, key: str, required: tuple[str, ...]) -> list[dict]:
    """The list of objects ``index[key]``, each with the required fields; else a ValueError."""
    found = index.get(key)
    if not isinstance(found, list):
        raise InputError(f"{path}: {key!r} is {'missing' if found is None else 'no list'}, a list is needed")
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number} of {key!r} is {entry!r}, it must be an object")
        for field in required:
            if field not in entry:
                name = f" (id {entry['id']})" if "id" in entry else ""
                raise InputError(f"{path}: entry {number}{name} of {key!r} lacks {field!r}")
    return found


def check_unique(path: Path, key: str, found: list[dict]) -> None:
    """ValueError unless the ids of ``index[key]`` are integers that all differ."""
    seen = set()
    for entry in found:
        identity = entry["id"]
        if not is_int(identity):
            raise InputError(f"{path}: {key!r} has the id {identity!r}, it must be an integer")
        if identity in seen:
            raise InputError(f"{path}: {key!r} has the id {identity} more than once")
        seen.add(identity)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shorten(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values if len(values) <= 20 else [*values[:19], "...", values[-1]])
