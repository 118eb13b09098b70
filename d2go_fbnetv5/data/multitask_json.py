"""The multitask format as one JSON index, for people to write. See ``multitask``."""

from pathlib import Path

import numpy as np

from d2go_fbnetv5.data.coco_boxes import read_boxes
from d2go_fbnetv5.data.coco_index import image_arrays, is_file_name, is_int, load_json, names_of, read_images
from d2go_fbnetv5.data.index_arrays import NO_LABEL, MultitaskIndex, Strings
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown


def read_json_index(path: Path) -> MultitaskIndex:
    """The checked index in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it breaks a rule; names the file, the image or entry, and what is allowed.
    """
    content = load_json(path)
    images = read_images(path, content)
    class_names, sem_seg_names = (names_of(path, content, key) for key in ("class_names", "sem_seg_names"))
    for image in images:
        _check_types(f"{path}: image {image['id']} ({image['file_name']})", image)
    box_names, boxes = read_boxes(path, content) if "annotations" in content else ((), None)
    ids, sizes, file_names = image_arrays(images)
    index = MultitaskIndex(
        DatasetInfo(class_names, box_names, sem_seg_names),
        ids,
        sizes,
        file_names,
        class_labels=np.array([_class_label(image) for image in images], dtype=np.int32),
        map_names=Strings.of(image.get("sem_seg_file_name") or "" for image in images),
        boxes=boxes,
        has_boxes=np.array([image.get("has_boxes", True) for image in images]) if boxes else None,
    )
    index.check(path)
    return index


def _check_types(where: str, image: dict) -> None:
    map_name, label = image.get("sem_seg_file_name"), image.get("class_label")
    if map_name is not None and not is_file_name(map_name):
        raise InputError(
            f"{where}: sem_seg_file_name is {shown(map_name)}, it must be a string that names a file"
        )
    if not isinstance(image.get("has_boxes", True), bool):
        raise InputError(f"{where}: has_boxes is {shown(image['has_boxes'])}, allowed are true and false")
    if label is not None and not is_int(label):
        raise InputError(f"{where}: class_label is {shown(label)}, it must be an integer")


def _class_label(image: dict) -> int:
    label = image.get("class_label")
    if label is None:
        return NO_LABEL
    return max(NO_LABEL + 1, min(label, -(NO_LABEL + 1)))  # what does not fit is out of range as well
