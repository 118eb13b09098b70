"""The images that `predict` reads, and the files it may write: no image, and nothing that others have written."""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2go_fbnetv5.data.image_files import find_images
from d2go_fbnetv5.data.images import encode_png
from d2go_fbnetv5.data.names import alike
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import SIGNATURE, is_ours, refuse_others, write_atomically

PREDICTIONS = "predictions.json"
_HEADER = 33  # bytes of a PNG's signature and its first chunk


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


_MARK = _chunk(b"tEXt", b"Software\0" + SIGNATURE.encode())


@dataclass(frozen=True)
class Place:
    """An image and the files of its prediction, relative to the output folder."""

    image: Path
    picture: Path
    label_map: Path | None

    @property
    def files(self) -> list[Path]:
        return [self.picture] if self.label_map is None else [self.picture, self.label_map]


def plan(given: Sequence[str], output: Path, label_maps: bool) -> list[Place]:
    """Find the images and a place for each prediction, before the first is made.

    An image ``NAME.jpg`` gets ``NAME.png`` and, if there are label maps, ``NAME_sem_seg.png``; one of a folder also the
    folders that it lies in there. Where another image has one of these already (also where just their case differs), it
    is NAME_2, NAME_3, ... in the order of the images.

    Args:
        given: images, and folders to search.

    Raises:
        FileNotFoundError: a folder without images.
        InputError: a file is in the way that is one of the images or was not written by `predict`.
    """
    found: dict[str, tuple[Path, Path]] = {}
    skipped: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            found.setdefault(os.path.abspath(path), (path, Path(path.stem)))
            continue
        images, others = find_images(path)
        images = [image for image in images if not (image.suffix == ".png" and is_ours(image))]
        if not images:
            raise FileNotFoundError(f"folder {path} has no images")
        for image in images:
            found.setdefault(os.path.abspath(image), (image, image.relative_to(path).with_suffix("")))
        skipped += [other for other in others if other != output / PREDICTIONS]
    if skipped:
        print(f"predict: {len(skipped)} files are no images, such as {skipped[0]}", file=sys.stderr)
    places = _places(list(found.values()), label_maps)
    _refuse_others(places, output)
    return places


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a picture or a label map that `plan` knows as our own."""
    data = encode_png(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data[:_HEADER] + _MARK + data[_HEADER:])


def _places(images: Sequence[tuple[Path, Path]], label_maps: bool) -> list[Place]:
    taken: set[str] = set()
    places = []
    for image, name in images:
        for count in itertools.count(1):
            stem = name.name if count == 1 else f"{name.name}_{count}"
            label_map = name.with_name(f"{stem}_sem_seg.png") if label_maps else None
            place = Place(image, name.with_name(f"{stem}.png"), label_map)
            # Some disks take names of another case, or with another form of an accent, for the same.
            keys = {alike(str(file)) for file in place.files}
            if not keys & taken:
                break
        taken |= keys
        places.append(place)
    return places


def _refuse_others(places: Sequence[Place], output: Path) -> None:
    images = {_identity(place.image) for place in places} - {None}
    for path in (output / file for place in places for file in place.files):
        if _identity(path) in images:
            raise InputError(
                f"{path} is one of the images, and a picture would replace it; choose another --output"
            )
        refuse_others(path, "another --output")
    path = output / PREDICTIONS
    if not _is_predictions(path):
        refuse_others(path, "another --output")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from others, whatever its name."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_predictions(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, list) and all(
        isinstance(entry, dict) and {"image", "height", "width"} <= entry.keys() for entry in content
    )
