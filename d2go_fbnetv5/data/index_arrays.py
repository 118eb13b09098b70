"""An index of images and their labels as arrays: no Python object an image or a box, whatever the set's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from d2go_fbnetv5.tasks.base import DEPTH_UNITS, DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

# The value of class_labels for "not labelled".
NO_LABEL = np.iinfo(np.int32).min
# Images checked at a time, so that what a check computes stays small.
_BLOCK = 65536


class Strings(Sequence[str]):
    """N strings as two arrays: their UTF-8 bytes one after the other, and the N places (integers) where they end.

    File names that are no UTF-8 keep their bytes (as in ``os.fsdecode``).
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        data, ends = bytearray(), []
        for string in strings:
            data += string.encode("utf-8", "surrogateescape")
            ends.append(len(data))
        return cls(np.frombuffer(bytes(data), dtype=np.uint8), np.array(ends, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Strings]) -> Strings:
        sizes = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
        ends = [part.ends + size for part, size in zip(parts, sizes, strict=True)]
        return cls(np.concatenate([part.data for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: Any) -> Any:
        place = range(len(self))[place]
        if isinstance(place, range):
            return [self[one] for one in place]
        start = self.ends[place - 1] if place else 0
        return self.data[start : self.ends[place]].tobytes().decode("utf-8", "surrogateescape")

    def lengths(self) -> np.ndarray:
        """Return each string's length in bytes."""
        return np.diff(self.ends, prepend=0)


@dataclass
class BoxArrays:
    """M boxes of N images, in the order of the images.

    Attributes:
        starts: N + 1 integers; the boxes of image i are the rows starts[i] to starts[i + 1].
        boxes: M x 4 float32, XYXY pixels.
        labels: M integers.
        crowd: M bool, or None where nothing is said about crowds.
        scores: M float32 in [0, 1], or None for boxes that no model gave.
        areas: M float64, pixels of the objects themselves, such as of their masks; None where nothing is said about
            them but the boxes' own areas.
    """

    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    scores: np.ndarray | None = None
    areas: np.ndarray | None = None

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        """The part of image ``place``'s sample that detection needs: ``boxes`` (M x 4 float32), ``box_labels`` (M
        int64), and ``box_is_crowd`` (M bool) and ``box_areas`` (M float64) if anything is said about those."""
        rows = slice(self.starts[place], self.starts[place + 1])
        found = {
            "boxes": torch.from_numpy(np.array(self.boxes[rows])),
            "box_labels": torch.from_numpy(self.labels[rows].astype(np.int64)),
        }
        if self.crowd is not None:
            found["box_is_crowd"] = torch.from_numpy(np.array(self.crowd[rows]))
        if self.areas is not None:
            found["box_areas"] = torch.from_numpy(np.array(self.areas[rows]))
        return found

    def total(self) -> int:
        """Return how many boxes there are, without crowds."""
        return int(len(self.boxes) - (0 if self.crowd is None else self.crowd.sum()))

    def num_objects(self, place: int) -> int:
        """Return how many boxes an image has, without crowds."""
        rows = slice(self.starts[place], self.starts[place + 1])
        return int(rows.stop - rows.start - (0 if self.crowd is None else self.crowd[rows].sum()))


@dataclass
class MultitaskIndex:
    """All that is known of N images.

    Attributes:
        info: the names of what is labelled.
        ids: N int64, all different.
        sizes: N x 2 int32, height and width of the upright image.
        file_names: of the images, relative to a folder of images.
        class_labels: N int32, ``NO_LABEL`` where there is none; None if no image has one.
        map_names: file names of the label maps, "" where there is none; None if no image has one.
        depth_names: file names of the maps of depth, in the same way.
        depth_scale: a depth PNG's value of one unit (`read_depth`).
        boxes: None if no image was labelled for detection.
        has_boxes: N bool, whether an image was; None if all were.
    """

    info: DatasetInfo
    ids: np.ndarray
    sizes: np.ndarray
    file_names: Strings
    class_labels: np.ndarray | None = None
    map_names: Strings | None = None
    depth_names: Strings | None = None
    depth_scale: float = 1000.0
    boxes: BoxArrays | None = None
    has_boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, path: Path) -> None:
        """The rules that hold in every form of an index.

        Raises:
            ValueError: names the index, the first image that breaks a rule, and what is allowed.
        """
        num_classes, num_maps = len(self.info.class_names), len(self.info.sem_seg_names)
        ignore = self.info.sem_seg_ignore
        if num_maps > ignore:
            raise InputError(
                f"{path}: 'sem_seg_names' has {num_maps} names, allowed are at most {ignore}, "
                f"because {ignore} means don't care"
            )
        for place in _first((self.sizes < 1).any(1)):
            height, width = self.sizes[place]
            raise InputError(
                f"{self.where(path, place)}: height is {height} and width {width}, they must be at least 1"
            )
        if self.map_names is not None and not num_maps:
            for place in _first(self.map_names.lengths() > 0):
                raise InputError(
                    f"{self.where(path, place)}: has sem_seg_file_name, but the index has no 'sem_seg_names'"
                )
        units = self.info.depth_units
        if units and (len(units) > 1 or units[0] not in DEPTH_UNITS):
            raise InputError(
                f"{path}: 'depth_units' is {list(units)}, allowed is one of {', '.join(DEPTH_UNITS)}"
            )
        if self.depth_names is not None and not units:
            for place in _first(self.depth_names.lengths() > 0):
                raise InputError(
                    f"{self.where(path, place)}: has depth_file_name, but the index has no 'depth_units'"
                )
        if self.class_labels is not None:
            labels = self.class_labels
            for place in _first((labels != NO_LABEL) & ((labels < 0) | (labels >= num_classes))):
                where = self.where(path, place)
                if not num_classes:
                    raise InputError(f"{where}: has class_label, but the index has no 'class_names'")
                raise InputError(
                    f"{where}: class_label is {labels[place]}, allowed are 0 to {num_classes - 1}"
                )

        if self.boxes is not None and self.has_boxes is not None:
            for place in _first(~self.has_boxes & (np.diff(self.boxes.starts) > 0)):
                raise InputError(
                    f"{self.where(path, place)}: has_boxes is false, but it has boxes; false is for an image that "
                    "nobody has looked for boxes in"
                )

    def check_boxes(self, path: Path) -> None:
        """ValueError unless every box has an area inside its image and a class.

        Scores, if there are any, must be in [0, 1], and the objects' areas finite and not negative.
        """
        boxes, num_classes = self.boxes, len(self.info.box_names)
        if boxes is None:
            return
        for first in range(0, len(self), _BLOCK):
            starts = boxes.starts[first : first + _BLOCK + 1]
            rows = slice(starts[0], starts[-1])
            owners = first + np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            corners, limits = boxes.boxes[rows], self.sizes[owners][:, ::-1]
            left, top, right, bottom = corners.T
            # Written so that NaN is wrong, too.
            inside = (left >= 0) & (top >= 0) & (right <= limits[:, 0]) & (bottom <= limits[:, 1])
            inside &= (right > left) & (bottom > top)
            for row in _first(~inside):
                raise InputError(
                    f"{self.where(path, owners[row])}: box {corners[row].tolist()} (XYXY) does not have an area inside "
                    f"of the image, which is {limits[row, 0]}x{limits[row, 1]}"
                )
            labels = boxes.labels[rows]
            for row in _first((labels < 0) | (labels >= num_classes)):
                raise InputError(
                    f"{self.where(path, owners[row])}: a box has the label {labels[row]}, "
                    f"allowed are 0 to {num_classes - 1}"
                )
            if boxes.scores is not None:
                scores = boxes.scores[rows]
                for row in _first(~((scores >= 0) & (scores <= 1))):
                    raise InputError(
                        f"{self.where(path, owners[row])}: a box has the score {scores[row]}, allowed are 0 to 1"
                    )
            if boxes.areas is not None:
                areas = boxes.areas[rows]
                for row in _first(~((areas >= 0) & (areas < np.inf))):
                    raise InputError(
                        f"{self.where(path, owners[row])}: a box has the area {areas[row]}, it must be at least 0"
                    )

    def label_counts(self) -> dict[str, int]:
        """Count the images with a "class_label", a "sem_seg" and a "depth", and the "boxes" without crowds."""
        labels, maps, depths = self.class_labels, self.map_names, self.depth_names
        return {
            "class_label": 0 if labels is None else int((labels != NO_LABEL).sum()),
            "boxes": 0 if self.boxes is None else self.boxes.total(),
            "sem_seg": 0 if maps is None else int((maps.lengths() > 0).sum()),
            "depth": 0 if depths is None else int((depths.lengths() > 0).sum()),
        }

    def where(self, path: Path, place: int) -> str:
        return f"{path}: image {self.ids[place]} ({self.file_names[int(place)]})"


def own_areas(boxes: np.ndarray) -> np.ndarray:
    """Return M float64 areas of M x 4 XYXY boxes."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def _first(wrong: ArrayLike) -> np.ndarray:
    """The first place that is True, or none."""
    return np.flatnonzero(wrong)[:1]
