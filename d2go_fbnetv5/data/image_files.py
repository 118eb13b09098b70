"""The files of images in a folder, without those that a system or a program puts there for itself."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

logger = logging.getLogger(__name__)

# macOS' archives and Synology's thumbnails; folders and files whose name begins with a dot are left out as well.
_FOREIGN = ("__MACOSX", "@eaDir")


def is_foreign(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or a system's own: .ipynb_checkpoints, __MACOSX, ..."""
    return name.startswith(".") or name in _FOREIGN


def subfolders(folder: str | Path) -> list[str]:
    """The sorted names of the folders in a folder."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_foreign(entry.name))


def image_names(folder: str | Path) -> list[str]:
    """The paths, relative to a folder, of the images in it and in its folders, in no order."""
    return [name for name in file_names(folder) if name.lower().endswith(IMG_EXTENSIONS)]


def file_names(folder: str | Path) -> Iterator[str]:
    """The paths, relative to a folder, of the files in it and in its folders, links followed but not in circles."""
    root = os.fspath(folder)
    # Of every folder those above it, so that a link to one of these does not lead around for ever.
    above: dict[str, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    for parent, folders, names in os.walk(root, followlinks=True):
        path = above.pop(parent)
        kept = []
        for name in folders:
            child = os.path.join(parent, name)
            real = os.path.realpath(child)
            if not is_foreign(name) and real not in path:
                above[child] = (*path, real)
                kept.append(name)
        folders[:] = kept
        inside = os.path.relpath(parent, root)
        for name in names:
            if not is_foreign(name):
                yield name if inside == os.curdir else f"{inside}/{name}"


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


def warn_of_copies(folder: str | Path, names: list[str]) -> None:
    """Warn of images that differ in their ending or in capitals alone, such as a/1.jpg and a/1.PNG."""
    seen: dict[str, str] = {}
    again = [
        (seen[stem], name)
        for name in names
        if seen.setdefault(stem := os.path.splitext(name)[0].casefold(), name) != name
    ]
    if again:
        logger.warning(
            "%s: %d of %d images differ from another one in the ending or in capitals alone, such as %s and %s; each "
            "counts as an image",
            *(folder, len(again), len(names), *again[0]),
        )
