"""Shared by the readers of COCO-like JSON: entries with the right fields, and images as arrays."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from d2go_fbnetv5.data.index_arrays import Strings
from d2go_fbnetv5.data.names import checked_names, is_utf8
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.options import shown
from d2go_fbnetv5.utils.text_files import parse_json, read_text

logger = logging.getLogger(__name__)

_INT32, _INT64 = 2**31, 2**63


def load_json(path: Path) -> dict[str, Any]:
    """Load the JSON object in a file. FileNotFoundError or ValueError if there is none, or it has a key twice."""
    if not path.is_file():
        raise FileNotFoundError(f"index {path} does not exist")
    index = parse_json(read_text(path), f"index {path}", halves=True)
    if not isinstance(index, dict):
        raise InputError(f"index {path} holds a {type(index).__name__}, it must be an object with 'images'")
    return index


def read_images(path: Path, index: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the index's images, at least one, each with a unique id, a file name and a size of integers."""
    images = entries(path, index, "images", ("id", "file_name", "height", "width"))
    if not images:
        raise InputError(f"{path}: 'images' is empty, at least one image is needed")
    check_unique(path, "images", images)
    seen: dict[str, int] = {}
    again = []
    for image in images:
        where, name = f"{path}: image {image['id']} ({image['file_name']})", image["file_name"]
        for key in ("height", "width"):
            if not is_int(image[key]) or not 1 <= image[key] < _INT32:
                raise InputError(
                    f"{where}: {key} is {shown(image[key])}, it must be an integer of 1 to {_INT32 - 1}"
                )
        if not is_file_name(name):
            raise InputError(f"{where}: file_name is {shown(name)}, it must be a string that names a file")
        if seen.setdefault(name, image["id"]) != image["id"]:
            again.append(image)
    if again:
        name = again[0]["file_name"]
        logger.warning(
            "%s: %d of %d images have the file of another one, such as images %d and %d, %s; each counts as an image",
            *(path, len(again), len(images), seen[name], again[0]["id"], name),
        )
    return images


def image_arrays(images: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, Strings]:
    """Return N ids (int64), N x 2 heights and widths (int32), and N file names."""
    return (
        np.array([image["id"] for image in images], dtype=np.int64),
        np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2),
        Strings.of(image["file_name"] for image in images),
    )


def names_of(path: Path, index: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return the list of strings ``index[key]``, empty if it is missing; else a ValueError."""
    names = index.get(key, [])
    if not isinstance(names, list):
        raise InputError(f"{path}: {key!r} must be a list of strings, it is {shown(names)}")
    return checked_names(f"{path}: {key!r}", names)


def depth_scale_of(path: Path, index: dict[str, Any]) -> float:
    """Return ``index["depth_scale"]``, a depth PNG's value of one unit, 1000 if it is missing; else a ValueError."""
    scale = index.get("depth_scale", 1000.0)
    if not is_number(scale) or scale <= 0:
        raise InputError(f"{path}: depth_scale is {shown(scale)}, it must be a number above 0")
    return float(scale)


def entries(path: Path, index: dict[str, Any], key: str, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the list of objects ``index[key]``, each with the required fields; else a ValueError."""
    found = index.get(key)
    if not isinstance(found, list):
        raise InputError(f"{path}: {key!r} is {'missing' if found is None else 'no list'}, a list is needed")
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number} of {key!r} is {shown(entry)}, it must be an object")
        for field in required:
            if field not in entry:
                name = f" (id {shown(entry['id'])})" if "id" in entry else ""
                raise InputError(f"{path}: entry {number}{name} of {key!r} lacks {field!r}")
    return found


def check_unique(path: Path, key: str, found: list[dict[str, Any]]) -> None:
    """ValueError unless the ids of ``index[key]`` are integers that all differ."""
    seen = set()
    for entry in found:
        identity = entry["id"]
        if not is_int(identity) or not -_INT64 <= identity < _INT64:
            raise InputError(
                f"{path}: {key!r} has the id {shown(identity)}, it must be an integer of 64 bits"
            )
        if identity in seen:
            raise InputError(f"{path}: {key!r} has the id {identity} more than once")
        seen.add(identity)


def is_int(value: Any) -> bool:
    """Return whether a value is an integer and no switch."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_file_name(value: Any) -> bool:
    """Return whether a value can be the name of a file."""
    # Names that are no UTF-8 have surrogates for their bytes, as os.fsdecode gives them.
    return isinstance(value, str) and value != "" and "\0" not in value and is_utf8(value, "surrogateescape")
