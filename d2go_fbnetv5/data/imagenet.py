"""Image classification from folders named by class."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from d2go_fbnetv5.data.image_files import (
    image_names,
    refuse_splits,
    require_folder,
    subfolders,
    warn_of_copies,
    warn_of_unread,
)
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.data.index_arrays import Strings
from d2go_fbnetv5.data.names import checked_names
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo

logger = logging.getLogger(__name__)


@register_dataset("imagenet")
class ImageNetFolder(torch.utils.data.Dataset[dict[str, Any]]):
    """``root/<class>/**/<image>``, as ImageNet's ``train`` and ``val`` are usually unpacked.

    The class folders in sorted order are the labels 0, 1, ...; ``image_id`` is the place of the file in the
    sorted list of all files. Hidden files and folders are left out.

    Args:
        root: folder of the class folders.

    Raises:
        FileNotFoundError: no such folder, no class folder, or a class folder without images.
        ValueError: the folders are parts of a set, such as train and val.
    ``dataset[i]`` raises FileNotFoundError and ValueError for images that are missing or broken.
    """

    def __init__(self, root: str | Path) -> None:
        require_folder("classes", root)
        self.folders = [Path(root)]
        classes = subfolders(root)
        if not classes:
            raise FileNotFoundError(f"folder of classes {root} has no class folder")
        refuse_splits(root, classes)
        loose = sorted(
            entry.name for entry in os.scandir(root) if entry.name.lower().endswith(IMG_EXTENSIONS)
        )
        if loose:
            logger.warning(
                "%s: %d images lie beside the class folders and are left out, such as %s",
                root,
                len(loose),
                loose[0],
            )
        self.info = DatasetInfo(class_names=checked_names(f"{root}: class folders", classes))
        found: list[str] = []
        counts = []
        unread: list[str] = []
        for name in classes:
            images, others = image_names(self.folders[0] / name)
            images.sort(key=os.path.split)
            unread += others
            if not images:
                cannot = f" that can be read, {others[-1]} cannot" if others else ""
                raise FileNotFoundError(f"class folder {self.folders[0] / name} has no images{cannot}")
            warn_of_copies(self.folders[0] / name, images)
            found += (f"{name}/{image}" for image in images)
            counts.append(len(images))
        warn_of_unread(root, unread)
        self._names = Strings.of(found)
        self._labels = np.repeat(np.arange(len(classes)), counts)

    def __len__(self) -> int:
        return len(self._names)

    def image_path(self, index: int) -> Path:
        return self.folders[0] / self._names[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``class_label``, ``image_id``, ``height``, ``width``."""
        index = range(len(self))[index]
        image = read_image(self.image_path(index))
        height, width = image.shape[-2:]
        label = int(self._labels[index])
        return {"image": image, "class_label": label, "image_id": index, "height": height, "width": width}
