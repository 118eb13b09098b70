"""Semantic segmentation from a folder of images beside a folder of label maps."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.data.image_files import file_names, image_names, require_folder, warn_of_unread
from d2go_fbnetv5.data.images import read_image, read_label_map
from d2go_fbnetv5.data.names import checked_names
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown


@register_dataset("sem_seg_folder")
class SemSegFolder(torch.utils.data.Dataset[dict[str, Any]]):
    """``image_root/**/<name>.jpg`` with ``map_root/**/<name>.png``, as in ADE20K and COCO-stuff.

    Args:
        image_root: folder of the images; ``image_id`` is an image's place in its sorted list.
        map_root: folder of the label maps, with the same folders and names.
        names: of the classes.
        values: which value stands for each class in the maps; by default 0, 1, ... Gaps are fine.
        ignore_values: values that mean don't care; they become 255.

    Raises, on opening:
        FileNotFoundError: a folder does not exist, has no images, or an image has no label map.
        ValueError: ``values`` does not fit ``names`` or ``ignore_values``.
    ``dataset[i]`` raises FileNotFoundError and ValueError for files that are missing or broken, a map of another
    size than its image, and values that are neither a class nor ignored.
    """

    def __init__(
        self,
        image_root: str | Path,
        map_root: str | Path,
        names: Sequence[str],
        values: Sequence[int] | None = None,
        ignore_values: Sequence[int] = (DatasetInfo.sem_seg_ignore,),
    ) -> None:
        names = checked_names("label maps: names", names)
        self.info = DatasetInfo(sem_seg_names=names)
        class_values = list(range(len(names)) if values is None else values)
        self._table = _lookup_table(class_values, len(names), list(ignore_values))
        self._allowed = f"{_ranges(class_values)}, and {_ranges(ignore_values)} (don't care)"
        image_root, map_root = Path(image_root), Path(map_root)
        for kind, folder in (("images", image_root), ("label maps", map_root)):
            require_folder(kind, folder)
        names_of_images, unread = image_names(image_root)
        names_of_images.sort(key=lambda name: PurePath(name).parts)
        if not names_of_images:
            raise FileNotFoundError(f"folder of images {image_root} has no images")
        warn_of_unread(image_root, unread)
        there = set(file_names(map_root))
        images_of: dict[str, str] = {}
        for image in names_of_images:
            label_map = str(PurePath(image).with_suffix(".png"))
            if label_map not in there:
                raise FileNotFoundError(f"image {image_root / image} has no label map {map_root / label_map}")
            other = images_of.setdefault(label_map, image)
            if other != image:
                raise InputError(
                    f"the images {image_root / other} and {image_root / image} have the same label map "
                    f"{map_root / label_map}"
                )
        self._images = [image_root / image for image in names_of_images]
        self._maps = [map_root / label_map for label_map in images_of]

    def __len__(self) -> int:
        return len(self._images)

    def image_path(self, index: int) -> Path:
        return self._images[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``sem_seg`` H x W int64, ``image_id``, ``height``, ``width``."""
        index = range(len(self))[index]
        image = read_image(self._images[index])
        height, width = image.shape[-2:]
        found = read_label_map(self._maps[index], (height, width))
        sem_seg = self._table[np.clip(found, 0, len(self._table) - 1)]
        if (sem_seg < 0).any():
            wrong = found[sem_seg < 0][0]
            raise InputError(
                f"label map {self._maps[index]} has the value {wrong}, allowed are {self._allowed}; options values and "
                "ignore_values say which value is which class, or none"
            )
        return {
            "image": image,
            "sem_seg": torch.from_numpy(sem_seg),
            "image_id": index,
            "height": height,
            "width": width,
        }


def _lookup_table(values: list[int], num_names: int, ignore_values: list[int]) -> np.ndarray:
    """For every value of a map its label, the ignored one, or -1; the last entry, for all greater values, is -1."""
    ignore = DatasetInfo.sem_seg_ignore
    if not 1 <= num_names <= ignore:
        raise InputError(f"label maps: there are {num_names} names, allowed are 1 to {ignore}")
    for option, given in (("values", values), ("ignore_values", ignore_values)):
        if not all(type(value) is int and 0 <= value <= 0xFFFF for value in given):
            raise InputError(f"label maps: {option} is {shown(given)}, allowed are integers of 0 to 65535")
    if len(values) != num_names or len(set(values)) != num_names:
        raise InputError(
            f"label maps: values is {values}, it must hold one number of at least 0 for each of {num_names} names"
        )
    both = set(values) & set(ignore_values)
    if both:
        raise InputError(f"label maps: the value {min(both)} is a class and in ignore_values")
    table = np.full(max(*values, *ignore_values, 0) + 2, -1, dtype=np.int64)
    table[values] = np.arange(num_names)
    table[ignore_values] = ignore
    return table


def _ranges(values: Sequence[int]) -> str:
    """ "0 to 4, 7" for 0, 1, 2, 3, 4, 7."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and parts[-1][1] == value - 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return (
        ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in parts) or "nothing"
    )
