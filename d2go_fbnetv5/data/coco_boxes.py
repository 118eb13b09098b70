"""Boxes of COCO-like JSON as arrays. Files whose numbers mean something else than they should are found out."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from d2go_fbnetv5.data.coco_index import check_unique, entries, is_int
from d2go_fbnetv5.data.index_arrays import BoxArrays, own_areas
from d2go_fbnetv5.data.names import checked_names
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.options import shown

logger = logging.getLogger(__name__)

# Boxes of real data sets exceed their images by rounding errors; those are cut off.
_BOX_TOLERANCE = 0.5
_FAULTS = ("", "has no area", "reaches outside of it")
# What bbox may mean instead of x, y, width, height, as corners of the box.
_OTHER_FORMS = {
    "corners x1, y1, x2, y2": lambda a, b, c, d: (a, b, c, d),
    "corners x1, x2, y1, y2": lambda a, b, c, d: (a, c, b, d),
    "y, x, height, width": lambda a, b, c, d: (b, a, b + d, a + c),
    "corners y1, x1, y2, x2": lambda a, b, c, d: (b, a, d, c),
    "centres, as x, y, width, height": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
}
# Of so many boxes one at least should reach into the right or lower part of its image.
_MANY, _PART = 50, 0.6


def read_boxes(path: Path, index: dict[str, Any], strict: bool = True) -> tuple[tuple[str, ...], BoxArrays]:
    """Read the names of an index's categories, which in the order of their ids are the labels 0, 1, ..., and its boxes.

    Args:
        path: of the index, for messages.
        index: has ``images`` (checked already), ``annotations`` and ``categories``.
        strict: a box outside its image or without area is an error; otherwise it is cut off at the image's border
            and dropped if nothing is left, with one warning for either.

    Raises:
        InputError: names the file, the annotation, its image, and what is allowed; or the boxes as a whole are
            something else than x, y, width and height in pixels.
    """
    images = index["images"]
    annotations = entries(path, index, "annotations", ("id", "image_id", "category_id", "bbox"))
    categories = entries(path, index, "categories", ("id", "name"))
    if not categories:
        raise InputError(f"{path}: 'categories' is empty, but the index has 'annotations'")
    check_unique(path, "annotations", annotations)
    check_unique(path, "categories", categories)
    categories = sorted(categories, key=lambda category: category["id"])
    names = checked_names(f"{path}: names of 'categories'", [category["name"] for category in categories])
    places = {image["id"]: place for place, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(categories)}
    _check_references(path, annotations, places, labels)

    owners = np.array([places[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)
    limits = np.tile(sizes, 2)[owners].reshape(-1, 4)
    xywh = _numbers(path, annotations)
    areas = _areas(path, annotations)
    classes = np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int32)
    if len(xywh):
        _refuse_shares(path, annotations, xywh, limits)
        _refuse_other_forms(path, annotations, xywh, limits, areas)
        _warn_of_a_corner(path, xywh, limits)
        _warn_of_areas(path, annotations, xywh, areas)
        _warn_of_repeats(path, annotations, np.column_stack([owners, classes, xywh]))
        _warn_of_unused(path, names, classes)
    boxes, fault = _corners(xywh, limits)
    _report_faults(path, annotations, limits, fault, strict)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)

    order = np.argsort(owners, kind="stable")
    order = order[kept[order]]
    crowd = np.array([_is_crowd(path, annotation) for annotation in annotations], dtype=bool)
    has_crowd = any("iscrowd" in annotation for annotation in annotations)
    boxes, areas = boxes[order].astype(np.float32), areas[order]
    own = own_areas(boxes)
    areas = np.where(np.isnan(areas), own, areas)
    return names, BoxArrays(
        starts=np.searchsorted(owners[order], np.arange(len(images) + 1)),
        boxes=boxes,
        labels=classes[order],
        crowd=crowd[order] if has_crowd else None,
        areas=None if (areas == own).all() else areas,
    )


def _check_references(
    path: Path, annotations: list[dict[str, Any]], places: dict[str, Any], labels: dict[str, Any]
) -> None:
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        if not is_int(image) or image not in places:
            raise InputError(
                f"{path}: annotation {annotation['id']} has image_id {shown(image)}, but 'images' has no such id"
            )
        if not is_int(category) or category not in labels:
            raise InputError(
                f"{path}: annotation {annotation['id']} of image {image} has category_id {shown(category)}, "
                f"allowed are {_shorten(labels)}"
            )


def _numbers(path: Path, annotations: list[dict[str, Any]]) -> np.ndarray:
    """M x 4 float64: every ``bbox``, of finite numbers."""
    boxes = [annotation["bbox"] for annotation in annotations]
    # Quick for the usual file: numpy alone would take texts and null for numbers, too.
    if set(map(type, boxes)) <= {list} and set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        try:
            xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        except (ValueError, OverflowError):
            xywh = None
        if xywh is not None and len(xywh) == len(boxes) and np.isfinite(xywh).all():
            return xywh
    for annotation, box in zip(annotations, boxes, strict=True):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise InputError(
                f"{_where(path, annotation)} has bbox {shown(box)}, "
                "it must be four numbers: x, y, width, height"
            )
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _areas(path: Path, annotations: list[dict[str, Any]]) -> np.ndarray:
    """M float64: what the annotations give as their ``area``, NaN where there is none."""
    areas = np.full(len(annotations), np.nan)
    for place, annotation in enumerate(annotations):
        area = annotation.get("area")
        if area is not None:
            if not is_number(area) or area < 0:
                raise InputError(
                    f"{_where(path, annotation)} has area {shown(area)}, it must be a number of at least 0"
                )
            areas[place] = area
    return areas


def _is_crowd(path: Path, annotation: dict[str, Any]) -> bool:
    crowd = annotation.get("iscrowd", 0)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        raise InputError(f"{_where(path, annotation)} has iscrowd {shown(crowd)}, allowed are 0 and 1")
    return bool(crowd)


def _refuse_shares(
    path: Path, annotations: list[dict[str, Any]], xywh: np.ndarray, limits: np.ndarray
) -> None:
    shares = (xywh <= 1.01).all(1) & (xywh >= -0.01).all(1) & (limits > 2).all(1)
    if shares.mean() > 0.5:
        example = annotations[np.flatnonzero(shares)[0]]
        raise InputError(
            f"{path}: {shares.sum()} of {len(xywh)} boxes look like shares of their image, such as bbox "
            f"{example['bbox']} of annotation {example['id']}; it must be x, y, width, height in pixels"
        )


def _refuse_other_forms(
    path: Path, annotations: list[dict[str, Any]], xywh: np.ndarray, limits: np.ndarray, areas: np.ndarray
) -> None:
    """Refuse boxes that mostly reach far outside of their images, or some, that would be inside in another form.

    Boxes that are merely careless exceed their image by a small part of their own size; those of people who are only
    partly in the picture, as some sets have them, fit in no other form either.
    """
    sides = xywh[:, 2:]
    beyond = xywh[:, :2] + sides - limits[:, :2]
    far = ((beyond > 1) & (beyond > 0.1 * sides)).any(1)
    # The area, where the file has it, tells corners from sizes even if no box reaches outside.
    extent = (sides - xywh[:, :2]).prod(1)
    by_area = np.isclose(extent, areas, rtol=0.01) & ~np.isclose(sides.prod(1), areas, rtol=0.01)
    is_far = far.sum() >= max(2, 0.05 * len(xywh))
    for form, corners in _OTHER_FORMS.items():
        boxes = np.stack(corners(*xywh.T), 1)
        inside = (boxes >= -_BOX_TOLERANCE) & (boxes <= limits + _BOX_TOLERANCE)
        fits = inside.all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        named = form.startswith("corners x1") and by_area.sum() >= max(2, 0.9 * len(xywh))
        if fits.mean() >= 0.98 and (is_far or named):
            example = annotations[np.flatnonzero(far if is_far else by_area)[0]]
            raise InputError(
                f"{path}: the boxes look like {form}; as x, y, width, height, which they must be, {far.sum()} of "
                f"{len(xywh)} reach outside of their image, and in the other form none does: bbox {example['bbox']} of "
                f"annotation {example['id']}"
            )
    if far.mean() > 0.5:
        example = annotations[np.flatnonzero(far)[0]]
        raise InputError(
            f"{path}: {far.sum()} of {len(xywh)} boxes reach far outside of their image, such as bbox "
            f"{shown(example['bbox'])} of annotation {example['id']}; it must be x, y, width, height in pixels of an "
            "image of 'width' x 'height', and neither in thousandths nor in pixels of a larger one"
        )


def _warn_of_areas(
    path: Path, annotations: list[dict[str, Any]], xywh: np.ndarray, areas: np.ndarray
) -> None:
    """Warn where most areas can hardly be those of what is in the boxes, as COCO's APs, APm and APl go by them."""
    sides = np.abs(xywh[:, 2:])
    odd = (areas > 1.1 * (sides + 1).prod(1)) | (areas < 0.01 * sides.prod(1))
    if odd.mean() > 0.5:
        example = annotations[np.flatnonzero(odd)[0]]
        logger.warning(
            "%s: %d of %d areas are greater than their boxes or less than a hundredth of them, such as %s of "
            "annotation %d with bbox %s; APs, APm and APl go by them, in pixels",
            *(path, odd.sum(), len(xywh), shown(example["area"]), example["id"], shown(example["bbox"])),
        )


def _warn_of_a_corner(path: Path, xywh: np.ndarray, limits: np.ndarray) -> None:
    """Warn of many boxes that all lie in the upper left of their images, as those of smaller copies do."""
    width, height = ((xywh[:, :2] + xywh[:, 2:]) / limits[:, :2]).max(0)
    if len(xywh) >= _MANY and max(width, height) < _PART:
        logger.warning(
            "%s: none of %d boxes reaches beyond %.0f %% of its image's width and %.0f %% of its height; do they "
            "belong to smaller images than 'height' and 'width' say?",
            *(path, len(xywh), 100 * width, 100 * height),
        )


def _warn_of_repeats(path: Path, annotations: list[dict[str, Any]], boxes: np.ndarray) -> None:
    """Warn of boxes that an image has twice, of which a detector can find one alone; M x 6, with image and label."""
    _, first, same = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[same.ravel()] != np.arange(len(boxes)))
    if len(again):
        example = annotations[again[0]]
        logger.warning(
            "%s: %d of %d boxes stand there twice, with the same image and category, such as bbox %s of annotation %d",
            *(path, len(again), len(boxes), shown(example["bbox"]), example["id"]),
        )


def _warn_of_unused(path: Path, names: tuple[str, ...], classes: np.ndarray) -> None:
    """Warn of categories without a box, as exporters add one above all others."""
    unused = np.flatnonzero(np.bincount(classes, minlength=len(names)) == 0)
    if len(unused):
        logger.warning(
            "%s: %d of %d categories have no box, such as %r; they are classes all the same",
            *(path, len(unused), len(names), names[unused[0]]),
        )


def _corners(xywh: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M x 4 float64 XYXY boxes cut off at their images' borders, and for each its place in _FAULTS."""
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    outside = (boxes < -_BOX_TOLERANCE).any(1) | (boxes > limits + _BOX_TOLERANCE).any(1)
    boxes = np.clip(boxes, 0, limits)
    area = (xywh[:, 2:] > 0).all(1) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return boxes, np.where(outside, 2, np.where(area, 0, 1))


def _report_faults(
    path: Path, annotations: list[dict[str, Any]], limits: np.ndarray, fault: np.ndarray, strict: bool
) -> None:
    for place in np.flatnonzero(fault)[:1] if strict else ():
        raise InputError(
            f"{_where(path, annotations[place])}: bbox {shown(annotations[place]['bbox'])} (x, y, width, height) "
            f"{_FAULTS[fault[place]]}, the image is {limits[place, 0]:.0f}x{limits[place, 1]:.0f}"
        )
    for kind, text in ((2, "reach outside of their image and are cut off"), (1, "without area are left out")):
        places = np.flatnonzero(fault == kind)
        if len(places):
            example = annotations[places[0]]
            logger.warning(
                "%s: %d of %d boxes %s, such as bbox %s of annotation %d (x, y, width, height; the image is %.0fx%.0f)",
                *(path, len(places), len(annotations), text, shown(example["bbox"]), example["id"]),
                *limits[places[0], :2],
            )


def _where(path: Path, annotation: dict[str, Any]) -> str:
    return f"{path}: annotation {annotation['id']} of image {annotation['image_id']}"


def _shorten(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values if len(values) <= 20 else [*values[:19], "...", values[-1]])
