"""Image classification from folders named by class."""

from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DatasetInfo


@register_dataset("imagenet")
class ImageNetFolder(torch.utils.data.Dataset):
    """``root/<class>/**/<image>``, as ImageNet's ``train`` and ``val`` are usually unpacked.

    The class folders in sorted order are the labels 0, 1, ...; ``image_id`` is the place of the file in the
    sorted list of all files.

    Args:
        root: folder of the class folders.

    Raises:
        FileNotFoundError: no such folder, no class folder, or a class folder without images.
    ``dataset[i]`` raises FileNotFoundError and ValueError for images that are missing or broken.
    """

    def __init__(self, root: str | Path) -> None:
        if not Path(root).is_dir():
            raise FileNotFoundError(f"folder of classes {root} does not exist")
        self.folders = [Path(root)]
        names, labels = find_classes(str(root))
        self._files = make_dataset(str(root), labels, extensions=IMG_EXTENSIONS)
        self.info = DatasetInfo(class_names=tuple(names))

    def __len__(self) -> int:
        return len(self._files)

    def image_path(self, index: int) -> Path:
        return Path(self._files[index][0])

    def __getitem__(self, index: int) -> dict:
        """The sample: ``image`` 3 x H x W uint8, ``class_label``, ``image_id``, ``height``, ``width``."""
        index = range(len(self))[index]
        path, label = self._files[index]
        image = read_image(path)
        height, width = image.shape[-2:]
        return {"image": image, "class_label": label, "image_id": index, "height": height, "width": width}
