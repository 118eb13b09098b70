"""Images in any folders, with or without a class by the folder's name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from d2go_fbnetv5.data.image_files import image_names, require_folder, warn_of_copies, warn_of_unread
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.data.index_arrays import Strings
from d2go_fbnetv5.data.names import checked_names
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

HOLD_OUT = 5  # one image of so many is the part "val"


@register_dataset("image_folders")
class ImageFolders(torch.utils.data.Dataset[dict[str, Any]]):
    """All images of some folders and the folders in them, in the order of their names.

    An image in a subfolder has that one's name as its class (of the uppermost subfolder, where they are nested); the
    names of all subfolders, sorted, are the classes 0, 1, ... ``image_id`` is an image's place. Hidden files and
    folders are left out.

    Args:
        folders: one or several.
        part: "val" is every fifth image, "train" the others; classes are those of all images in either.

    Raises, on opening:
        FileNotFoundError: a folder does not exist, or has no images.
    ``dataset[i]`` raises FileNotFoundError and ValueError for images that are missing or broken.
    """

    def __init__(
        self, folders: str | Path | Sequence[str | Path], part: Literal["all", "train", "val"] = "all"
    ) -> None:
        self.folders = [Path(path) for path in ([folders] if isinstance(folders, str | Path) else folders)]
        if not self.folders:
            raise InputError("image_folders: folders is empty, at least one is needed")
        found: list[str] = []
        counts = []
        for folder in self.folders:
            require_folder("images", folder)
            names, unread = image_names(folder)
            names.sort()
            if not names:
                raise FileNotFoundError(f"folder of images {folder} has no images")
            warn_of_unread(folder, unread)
            warn_of_copies(folder, names)
            found += names
            counts.append(len(names))
        classes = sorted({_class_name(name) for name in found} - {""})
        labels = {"": -1, **{name: label for label, name in enumerate(classes)}}
        self._labels = np.array([labels[_class_name(name)] for name in found], dtype=np.int32)
        self._names = Strings.of(found)
        self._folder_ends = np.cumsum(counts)
        places = np.arange(len(found))
        is_val = places % HOLD_OUT == HOLD_OUT - 1
        self._places = {"all": places, "train": places[~is_val], "val": places[is_val]}[part]
        where = f"{', '.join(map(str, self.folders))}: class folders"
        self.info = DatasetInfo(class_names=checked_names(where, classes))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def label_counts(self) -> dict[str, int]:
        return {"class_label": int((self._labels[self._places] >= 0).sum())}

    def image_path(self, index: int) -> Path:
        place = int(self._places[index])
        folder = self.folders[int(np.searchsorted(self._folder_ends, place, side="right"))]
        return folder / self._names[place]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``class_label`` if it has one, ``image_id``, ``height``, ``width``."""
        index = range(len(self))[index]
        image = read_image(self.image_path(index))
        height, width = image.shape[-2:]
        sample = {"image": image, "image_id": index, "height": height, "width": width}
        label = int(self._labels[self._places[index]])
        if label >= 0:
            sample["class_label"] = label
        return sample


def _class_name(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first if slash else ""
