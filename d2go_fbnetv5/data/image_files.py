"""The files of images in a folder, without those that a system or a program puts there for itself."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from d2go_fbnetv5.data.names import alike
from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

# macOS' archives, thumbnails and bins of Synology and QNAP, Python's caches, and what stands at the top of a disk;
# folders and files whose name begins with a dot are left out as well.
_FOREIGN = {
    *("__MACOSX", "Network Trash Folder", "Temporary Items", "@eaDir", "#recycle", "#snapshot", "@Recycle"),
    *("__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
}
# Pictures, but none that can be read here.
_UNREAD = (".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
_SPLIT = re.compile(r"(train|training|val|valid|validation|eval|evaluation|dev|test|testing)[-_]?\d*")
# How a copy of a file is named, and a mask beside its image.
_COPY = re.compile(r"( \(\d+\)| - copy| copy|_mask|_mask_\d+)$")


def is_foreign(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or a system's own: .ipynb_checkpoints, __MACOSX, ..."""
    return name.startswith(".") or name in _FOREIGN


def require_folder(kind: str, folder: str | Path) -> None:
    """Raise FileNotFoundError, which says of what the folder is, if it does not exist."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"folder of {kind} {folder} does not exist")


def subfolders(folder: str | Path) -> list[str]:
    """Return the sorted names of the folders in a folder; links that lead nowhere are warned of."""
    entries = [entry for entry in os.scandir(folder) if not is_foreign(entry.name)]
    _warn_of_lost(folder, [entry.name for entry in entries if _is_lost(entry.path)])
    return sorted(entry.name for entry in entries if entry.is_dir())


def image_names(folder: str | Path) -> tuple[list[str], list[str]]:
    """Return the images in a folder and in its folders, and the pictures of kinds that cannot be read, in no order.

    Links that lead nowhere are warned of, unless they are named as an image, which is an error once it is read. The
    paths of images are relative to the folder, those of the others are with it.
    """
    found: list[str] = []
    unread: list[str] = []
    lost: list[str] = []
    for name in file_names(folder):
        if name.lower().endswith(IMG_EXTENSIONS):
            found.append(name)
        elif name.lower().endswith(_UNREAD):
            unread.append(os.path.join(folder, name))
        elif _is_lost(os.path.join(folder, name)):
            lost.append(name)
    _warn_of_lost(folder, lost)
    return found, unread


def _is_lost(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _warn_of_lost(folder: str | Path, lost: list[str]) -> None:
    if lost:
        logger.warning(
            "%s: %d links lead nowhere and are left out with all that they stand for, such as %s",
            *(folder, len(lost), min(lost)),
        )


def find_images(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Find the images of a folder and of those in it, and the other files, either in the order of their names."""
    images: list[Path] = []
    others: list[Path] = []
    for name in sorted(file_names(folder), key=os.path.split):
        path = Path(folder, name)
        (images if name.lower().endswith(IMG_EXTENSIONS) and path.is_file() else others).append(path)
    return images, others


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


def warn_of_unread(folder: str | Path, unread: list[str]) -> None:
    """Warn of pictures in a folder that `image_names` has left out."""
    if unread:
        logger.warning(
            "%s: %d pictures are of kinds that cannot be read and are left out, such as %s; make PNG or JPEG of them",
            *(folder, len(unread), unread[0]),
        )


def refuse_splits(folder: str | Path, classes: list[str]) -> None:
    """Raise an InputError if the folders for classes are those of a set's parts, such as train and val."""
    if len(classes) > 1 and all(_SPLIT.fullmatch(name.lower()) for name in classes):
        raise InputError(
            f"folder of classes {folder}: its folders {', '.join(classes)} are parts of a set and no classes; allowed: "
            f"one of them, such as {Path(folder, classes[0])}"
        )


def warn_of_copies(folder: str | Path, names: list[str]) -> None:
    """Warn of images that are named like another one: a/1.jpg and a/1.PNG, "1 (1).jpg", 1_mask.png."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(_stem(name), name)

    def other(name: str) -> str:
        same = first[_stem(name)]
        return same if same != name else first.get(_COPY.sub("", _stem(name)), name)

    again = [(other(name), name) for name in names if other(name) != name]
    if again:
        logger.warning(
            "%s: %d of %d images are named as another one is, but for the ending, capitals or what a copy or a mask is "
            "named by, such as %s and %s; each counts as an image",
            *(folder, len(again), len(names), *again[0]),
        )


def _stem(name: str) -> str:
    return alike(os.path.splitext(name)[0])
