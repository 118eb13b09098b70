"""The multitask format: an index, JSON or a folder of arrays, beside images and label maps.

The JSON form is COCO's detection format with a few more fields, so a COCO file is an index already::

    {"images": [{"id": 1, "file_name": "images/1.jpg", "height": 480, "width": 640,
                 "class_label": 3, "sem_seg_file_name": "maps/1.png", "depth_file_name": "depth/1.png",
                 "has_boxes": true}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 18, "bbox": [x, y, width, height],
                      "iscrowd": 0, "area": 1500.5}],
     "categories": [{"id": 18, "name": "dog"}],
     "class_names": ["cat", ...], "sem_seg_names": ["sky", ...],
     "depth_units": ["metres"], "depth_scale": 1000}

Every label is optional. ``class_label`` needs ``class_names``, ``sem_seg_file_name`` needs ``sem_seg_names``,
``depth_file_name`` needs ``depth_units``, ["metres"] or ["relative"]. In an index with ``annotations`` an image without
any is an image without objects, unless ``"has_boxes": false`` says that nobody labelled it. Category ids may have gaps:
in sorted order they become the labels 0, 1, ... File names are relative to the folder of images, by default the one
that the index lies in. Label maps are PNG files of 8 or 16 bits, 255 = don't care. Depth is a PNG of 16 bits, whose
value divided by ``depth_scale`` (1000) is the depth, or a ``.npy`` file of floats, which are the depth itself; 0 is
a pixel without any. An ``area`` is the object's own, such as its mask's, in pixels; COCO's APs, APm and APl go by it.

The folder of arrays holds the same for millions of images; see ``index_files``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.data.coco_boxes import read_boxes
from d2go_fbnetv5.data.coco_index import (
    depth_scale_of,
    image_arrays,
    is_file_name,
    is_int,
    load_json,
    names_of,
    read_images,
)
from d2go_fbnetv5.data.image_files import require_folder
from d2go_fbnetv5.data.images import check_labels, read_depth, read_image, read_label_map
from d2go_fbnetv5.data.index_arrays import NO_LABEL, MultitaskIndex, Strings
from d2go_fbnetv5.data.index_files import map_index, open_index
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown


@register_dataset("multitask")
class MultitaskDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Reads the multitask format (see this module's docstring).

    Args:
        index: path of the JSON file or of the folder of arrays.
        image_root: folder that file names are relative to; the one that the index lies in by default.

    Attributes:
        index: the ``MultitaskIndex``.

    Raises, on opening:
        FileNotFoundError: no such index or folder.
        ValueError: the index breaks a rule; names the file, the image or entry, and what is allowed.
    ``dataset[i]`` raises FileNotFoundError and ValueError for files that are missing, broken, of another size
    than the index says, or hold labels out of range.
    """

    def __init__(self, index: str | Path, image_root: str | Path | None = None) -> None:
        self.path = Path(index)
        self.root = Path(image_root) if image_root is not None else self.path.parent
        if self.path.is_dir():
            self.index = open_index(self.path)
        else:
            self.index = read_json_index(self.path)
        require_folder("images", self.root)

    def __getstate__(self) -> dict[str, Any]:
        # A process that gets the data set maps the same files, instead of being sent what is in them.
        return {**self.__dict__, "index": None} if self.path.is_dir() else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.index is None:
            self.index = map_index(self.path)

    @property
    def info(self) -> DatasetInfo:
        return self.index.info

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> np.ndarray:
        """Return N x 2: height and width of every image, as the index has them."""
        return self.index.sizes

    @property
    def label_counts(self) -> dict[str, int]:
        return self.index.label_counts()

    def image_path(self, index: int) -> Path:
        return self.root / self.index.file_names[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8 and the labels that the index has for it."""
        place = range(len(self))[index]  # counts negative ones from the end, as a list does
        found = self.index
        size = tuple(found.sizes[place].tolist())
        sample: dict[str, Any] = {"image": read_image(self.image_path(place), size)}
        if found.class_labels is not None and found.class_labels[place] != NO_LABEL:
            sample["class_label"] = int(found.class_labels[place])
        if found.boxes is not None and (found.has_boxes is None or found.has_boxes[place]):
            sample.update(found.boxes[place])
        if found.map_names is not None and found.map_names[place]:
            path = self.root / found.map_names[place]
            labels = read_label_map(path, size)
            check_labels(path, labels, len(self.info.sem_seg_names), self.info.sem_seg_ignore)
            sample["sem_seg"] = torch.from_numpy(labels)
        if found.depth_names is not None and found.depth_names[place]:
            depth = read_depth(self.root / found.depth_names[place], found.depth_scale, size)
            sample["depth"] = torch.from_numpy(depth)
        sample.update(image_id=int(found.ids[place]), height=size[0], width=size[1])
        return sample


def read_json_index(path: Path) -> MultitaskIndex:
    """Read the checked index in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it breaks a rule; names the file, the image or entry, and what is allowed.
    """
    content = load_json(path)
    images = read_images(path, content)
    class_names, sem_seg_names, depth_units = (
        names_of(path, content, key) for key in ("class_names", "sem_seg_names", "depth_units")
    )
    for image in images:
        _check_types(f"{path}: image {image['id']} ({image['file_name']})", image)
    box_names, boxes = read_boxes(path, content) if "annotations" in content else ((), None)
    ids, sizes, file_names = image_arrays(images)
    index = MultitaskIndex(
        DatasetInfo(class_names, box_names, sem_seg_names, depth_units=depth_units),
        ids,
        sizes,
        file_names,
        class_labels=np.array([_class_label(image) for image in images], dtype=np.int32),
        map_names=Strings.of(image.get("sem_seg_file_name") or "" for image in images),
        depth_names=Strings.of(image.get("depth_file_name") or "" for image in images),
        depth_scale=depth_scale_of(path, content),
        boxes=boxes,
        has_boxes=np.array([image.get("has_boxes", True) for image in images]) if boxes else None,
    )
    index.check(path)
    return index


def _check_types(where: str, image: dict[str, Any]) -> None:
    label = image.get("class_label")
    for key in ("sem_seg_file_name", "depth_file_name"):
        name = image.get(key)
        if name is not None and not is_file_name(name):
            raise InputError(f"{where}: {key} is {shown(name)}, it must be a string that names a file")
    if not isinstance(image.get("has_boxes", True), bool):
        raise InputError(f"{where}: has_boxes is {shown(image['has_boxes'])}, allowed are true and false")
    if label is not None and not is_int(label):
        raise InputError(f"{where}: class_label is {shown(label)}, it must be an integer")


def _class_label(image: dict[str, Any]) -> int:
    label = image.get("class_label")
    if label is None:
        return NO_LABEL
    return max(NO_LABEL + 1, min(label, -(NO_LABEL + 1)))  # what does not fit is out of range as well
