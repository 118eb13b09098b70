"""The images of a folder, without what operating systems and editors hide among them."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS


def find_images(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """Search a folder to any depth.

    Hidden files and folders are passed over: names that begin with a dot, such as `._photo.jpg` and
    `.ipynb_checkpoints`. Links to folders are not followed, as they may lead in a circle.

    Returns:
        the images, by the endings of their names, and the other files; either in the order of their names.
    """
    images: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            is_image = name.lower().endswith(IMG_EXTENSIONS) and path.is_file()
            (images if is_image else others).append(path)
    return images, others
