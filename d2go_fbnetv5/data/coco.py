"""COCO's detection format as it comes, with the irregularities of real files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.data.coco_boxes import read_boxes
from d2go_fbnetv5.data.coco_index import image_arrays, load_json, read_images
from d2go_fbnetv5.data.image_files import require_folder
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError


@register_dataset("coco")
class CocoDetection(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and boxes of a COCO file such as ``instances_train2017.json``.

    Category ids may have gaps: in sorted order they become the labels 0, 1, ... Crowds are kept and flagged in
    ``box_is_crowd``. Boxes are cut off at the border of their image, those without area are left out (with a
    warning). An object's ``area``, as COCO has it of the mask, is kept in ``box_areas``. Masks themselves, as polygons
    or run lengths, and captions are ignored.

    Args:
        annotations_json: the file of annotations.
        image_root: folder that its file names are relative to.
        keep_empty: also give the images without a box that is not a crowd. Detectron2 leaves them out of training.

    Raises, on opening:
        FileNotFoundError: no such file or folder.
        ValueError: the file lacks fields, refers to unknown images or categories, or has images that the multitask
            format marks as not labelled; or no image is left.
    ``dataset[i]`` raises FileNotFoundError and ValueError for images that are missing, broken or of another size.
    """

    def __init__(self, annotations_json: str | Path, image_root: str | Path, keep_empty: bool = True) -> None:
        path, self.root = Path(annotations_json), Path(image_root)
        index = load_json(path)
        require_folder("images", self.root)
        images = read_images(path, index)
        unlabelled = [image["id"] for image in images if not image.get("has_boxes", True)]
        if unlabelled:
            raise InputError(
                f"{path}: has_boxes is false of {len(unlabelled)} of {len(images)} images, such as {unlabelled[0]}: "
                "nobody labelled them, and this reader would take them for images without objects; READER: multitask "
                "(with index) knows them"
            )
        self._ids, self._sizes, self._file_names = image_arrays(images)
        box_names, self._boxes = read_boxes(path, index, strict=False)
        self._places = np.arange(len(images))
        if not keep_empty:
            self._places = np.array([place for place in self._places if self._boxes.num_objects(int(place))])
        if not len(self._places):
            raise InputError(f"{path}: no image has a box, so keep_empty=False leaves none")
        self.info = DatasetInfo(box_names=box_names)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def sizes(self) -> np.ndarray:
        """Return N x 2: height and width of every image, as the file has them."""
        return self._sizes[self._places]

    @property
    def label_counts(self) -> dict[str, int]:
        return {"boxes": self._boxes.total()}

    def image_path(self, index: int) -> Path:
        return self.root / self._file_names[self._places[index]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``boxes``, ``box_labels``, ``box_is_crowd``, ``image_id``, ..."""
        place = self._places[index]
        height, width = self._sizes[place].tolist()
        image = read_image(self.image_path(index), (height, width))
        sample: dict[str, Any] = {"image": image, **self._boxes[place]}
        sample.update(image_id=int(self._ids[place]), height=height, width=width)
        return sample
