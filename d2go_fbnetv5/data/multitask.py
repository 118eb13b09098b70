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

from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.data.coco_index import BoxIndex, image_sizes, is_int, load_json, read_images
from d2go_fbnetv5.data.images import check_labels, read_image, read_label_map
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo


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
        index = load_json(self.path)
        if not self.root.is_dir():
            raise FileNotFoundError(f"folder of images {self.root} does not exist")
        self._images = read_images(self.path, index)
        class_names, sem_seg_names = (
            _names(self.path, index, key) for key in ("class_names", "sem_seg_names")
        )
        self._check_images(len(class_names), len(sem_seg_names))
        self._boxes = BoxIndex(self.path, index) if "annotations" in index else None
        self.info = DatasetInfo(class_names, self._boxes.names if self._boxes else (), sem_seg_names)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> np.ndarray:
        """N x 2: height and width of every image, as the index has them."""
        return image_sizes(self._images)

    def __getitem__(self, index: int) -> dict:
        """The sample: ``image`` 3 x H x W uint8 and the labels that the index has for it."""
        index = range(len(self))[index]  # counts negative ones from the end, as a list does
        entry = self._images[index]
        size = (entry["height"], entry["width"])
        sample: dict[str, Any] = {"image": read_image(self.root / entry["file_name"], size)}
        if entry.get("class_label") is not None:
            sample["class_label"] = entry["class_label"]
        if self._boxes and entry.get("has_boxes", True):
            sample.update(self._boxes[index])
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
            if not isinstance(image.get("sem_seg_file_name"), str | None):
                raise ValueError(
                    f"{where}: sem_seg_file_name is {image['sem_seg_file_name']!r}, it must be a string"
                )
            if image.get("sem_seg_file_name") is not None and not num_maps:
                raise ValueError(f"{where}: has sem_seg_file_name, but the index has no 'sem_seg_names'")
            if not isinstance(image.get("has_boxes", True), bool):
                raise ValueError(f"{where}: has_boxes is {image['has_boxes']!r}, allowed are true and false")
            label = image.get("class_label")
            if label is None:
                continue
            if not num_classes:
                raise ValueError(f"{where}: has class_label, but the index has no 'class_names'")
            if not is_int(label) or not 0 <= label < num_classes:
                raise ValueError(f"{where}: class_label is {label!r}, allowed are 0 to {num_classes - 1}")


def _names(path: Path, index: dict, key: str) -> tuple[str, ...]:
    names = index.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key!r} must be a list of strings")
    return tuple(names)
