"""Scenes composed on the fly: labelled objects on photographs, with exact labels for four tasks."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import MOST_AREA
from d2go_fbnetv5.utils.opencv import opencv

SPLITS = ("train", "val")

# The largest object is larger than every other one by this factor, in height and in box area.
_LARGEST_MARGIN = 1.4
# At least this share of an object's pixels stays visible: what is labelled can be seen.
_MIN_VISIBLE = 0.75
_PLACING_TRIES = 12
_MOST_IMAGES, _MOST_OBJECTS = 10**7, 100  # what exceeds these is a slip


@dataclass
class Item:
    """An object of a scene.

    Attributes:
        label: its class.
        top, left: its place in pixels.
        alpha: h x w float32 in [0, 1], how much of a pixel it covers.
        mask: h x w bool, where it covers at least half of the pixel; touches all four sides.
        texture: h x w float32 in [0, 1], its own brightness; None for one of a single colour.
    """

    label: int
    top: int
    left: int
    alpha: np.ndarray
    mask: np.ndarray
    texture: np.ndarray | None = None

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the scene that it may cover."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY around the mask: pixel x covers [x, x + 1)."""
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height


class Scenes(torch.utils.data.Dataset[dict[str, Any]]):
    """Scenes of 1 to ``max_objects`` objects on crops of two photographs; a subclass makes the objects.

    A sample has all labels: ``class_label`` is the largest object (by a clear margin); ``boxes`` are tight around the
    visible pixels of every object, in the order of drawing; ``sem_seg`` names for every pixel the topmost object (0 =
    background, class c = c + 1); ``depth`` (`stacking`) says which object lies on which. Objects may overlap, and at
    least three quarters of each stay visible.

    ``train`` and ``val`` share no half of a photograph. A sample is a function of the arguments and its index alone.

    Args:
        split: "train" or "val".
        size: height and width in pixels, or one number for both; at least 32. Objects scale with the short side.
        num_images: length of the set, at most ten million.
        seed: any non-negative integer.
        max_objects: most objects in a scene, 1 to 100.

    Attributes:
        names: of the classes.
        heights: the least, the largest object's least, and the most height of an object, as shares of the short side.
        dimmed: the photographs are dimmed by a factor in this range.
        option: what ``max_objects`` is called in errors.
    """

    names: ClassVar[tuple[str, ...]]
    heights: ClassVar[tuple[float, float, float]]
    dimmed: ClassVar[tuple[float, float]]
    option: ClassVar[str] = "max_objects"

    def __init__(
        self, split: str, size: int | tuple[int, int], num_images: int, seed: int, max_objects: int
    ) -> None:
        what = type(self).__name__
        if split not in SPLITS:
            raise InputError(f"{what}: split is {split!r}, allowed are {', '.join(SPLITS)}")
        height, width = (size, size) if isinstance(size, int) else (int(side) for side in size)
        if seed < 0:
            raise InputError(f"{what}: seed is {seed}, it must be at least 0")
        for name, value, least, most in (
            ("size", min(height, width), 32, MOST_AREA),
            ("num_images", num_images, 1, _MOST_IMAGES),
            (self.option, max_objects, 1, _MOST_OBJECTS),
        ):
            if not least <= value <= most:
                raise InputError(f"{what}: {name} is {value}, it must be {least} to {most}")
        if height * width > MOST_AREA:
            raise InputError(f"{what}: size is {height}x{width}, allowed are {MOST_AREA} pixels")
        self.split, self.size, self.num_images = split, (height, width), num_images
        self.seed, self.max_objects = seed, max_objects
        self.info = DatasetInfo(
            class_names=self.names,
            box_names=self.names,
            sem_seg_names=("background", *self.names),
            depth_units=("relative",),
        )

    @abstractmethod
    def render(self, rng: np.random.Generator, height: float) -> Item:
        """Return a random object of the split, ``height`` pixels tall; its place is not yet chosen."""

    @abstractmethod
    def paint(self, image: np.ndarray, items: list[Item], rng: np.random.Generator) -> None:
        """Blend objects, in the order of drawing, into an H x W x 3 float32 image in place."""

    def __len__(self) -> int:
        return self.num_images

    @property
    def sizes(self) -> np.ndarray:
        """Return N x 2: height and width of every image."""
        return np.tile(self.size, (self.num_images, 1))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``class_label``, ``boxes``, ``sem_seg``, ``depth``, ..."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"{type(self).__name__} has {self.num_images} images, asked for number {index}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        items, owner = self.arrange(rng)
        image = self._background(rng)
        self.paint(image, items, rng)

        labels = np.array([item.label for item in items], dtype=np.int64)
        boxes = np.array([item.box for item in items], dtype=np.float32)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        # owner is -1 on the background, which picks the last entry.
        sem_seg = np.append(labels + 1, 0)[owner]
        depth = (1 / np.append(stacking(items) + 1, 1)).astype(np.float32)[owner]
        return {
            "image": torch.from_numpy(np.rint(image).astype(np.uint8).transpose(2, 0, 1).copy()),
            "class_label": int(labels[areas.argmax()]),
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(labels),
            "sem_seg": torch.from_numpy(sem_seg),
            "depth": torch.from_numpy(depth),
            "image_id": index,
            "height": self.size[0],
            "width": self.size[1],
        }

    def arrange(self, rng: np.random.Generator) -> tuple[list[Item], np.ndarray]:
        """Return objects in the order of drawing, and the H x W map of the topmost one's place in it (-1 = none)."""
        short = min(self.size)
        low, middle, high = self.heights
        least, most = max(short * low, 8.0), short * high
        largest = self._placed(rng, log_uniform(rng, max(short * middle, least), most))
        largest_height, largest_area = largest.mask.shape[0], largest.mask.size
        items, owner = [largest], np.full(self.size, -1, dtype=np.int64)
        owner[largest.window][largest.mask] = 0

        for _ in range(int(rng.integers(self.max_objects))):
            bound = largest_height / _LARGEST_MARGIN
            if bound <= least:
                break
            item = self._placed(rng, log_uniform(rng, least, bound))
            if _LARGEST_MARGIN * max(item.mask.shape[0] / largest_height, item.mask.size / largest_area) > 1:
                continue  # such as a wide object beside a narrow largest one
            for _ in range(_PLACING_TRIES):
                self.place(rng, item)
                on_top = bool(rng.integers(2))
                drawn = _draw(items, owner, item, on_top)
                if drawn is not None:
                    items, owner = drawn
                    break
        return items, owner

    def place(self, rng: np.random.Generator, item: Item) -> None:
        """Move an object to a random place where all of it is in the scene."""
        height, width = item.mask.shape
        item.top = int(rng.integers(self.size[0] - height + 1))
        item.left = int(rng.integers(self.size[1] - width + 1))

    def _placed(self, rng: np.random.Generator, height: float) -> Item:
        item = self.render(rng, height)
        self.place(rng, item)
        return item

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A crop of a photograph's half as an H x W x 3 float32 image; train sees the left halves, val the right."""
        photographs = _photographs()
        photograph = photographs[int(rng.integers(len(photographs)))]
        middle = photograph.shape[1] // 2
        half = photograph[:, :middle] if self.split == "train" else photograph[:, middle:]
        height, width = self.size
        fit = min(half.shape[0] / height, half.shape[1] / width)
        zoom = fit * log_uniform(rng, 0.25, 1.0)
        tall, wide = max(int(height * zoom), 1), max(int(width * zoom), 1)
        top = int(rng.integers(half.shape[0] - tall + 1))
        left = int(rng.integers(half.shape[1] - wide + 1))
        crop = half[top : top + tall, left : left + wide]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        cv2 = opencv()
        method = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
        image = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method)
        return image.astype(np.float32) * np.float32(rng.uniform(*self.dimmed))


def stacking(items: list[Item]) -> np.ndarray:
    """Return of objects in the order of drawing how high each lies: 1 on the background, k + 1 on one that lies k high.

    An object's depth is 1 / (1 + that), the background's 1. By the order of drawing alone objects that do not overlap
    would differ, though no picture could tell.
    """
    heights: list[int] = []
    for item in items:
        below = [height for height, other in zip(heights, items, strict=False) if _overlap(item, other)]
        heights.append(1 + max(below, default=0))
    return np.array(heights, dtype=np.int64)


def _overlap(one: Item, other: Item) -> bool:
    left, top, right, bottom = (
        pick(a, b) for pick, a, b in zip((max, max, min, min), one.box, other.box, strict=True)
    )
    if left >= right or top >= bottom:
        return False
    parts = (
        item.mask[top - item.top : bottom - item.top, left - item.left : right - item.left]
        for item in (one, other)
    )
    return bool(np.logical_and(*parts).any())


def tight(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns from a mask's first to its last true pixel; it must have one."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number whose logarithm is uniform between those of two positive bounds."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


@lru_cache(maxsize=1)
def _photographs() -> tuple[np.ndarray, ...]:
    """Read scikit-learn's two photographs, H x W x 3 uint8 RGB."""
    from sklearn.datasets import load_sample_images  # as in `digits`

    return tuple(np.ascontiguousarray(image) for image in load_sample_images().images)


def _draw(
    items: list[Item], owner: np.ndarray, item: Item, on_top: bool
) -> tuple[list[Item], np.ndarray] | None:
    """The scene with one more object over or under all others; None if that would hide too much of any of them."""
    if on_top:
        items, owner = [*items, item], owner.copy()
        owner[item.window][item.mask] = len(items) - 1
    else:
        items, owner = [item, *items], np.where(owner >= 0, owner + 1, owner)
        below = owner[item.window]
        below[item.mask & (below < 0)] = 0
    for number, other in enumerate(items):
        visible = owner[other.window] == number
        # A box stays tight around what is visible.
        ends = (visible[0], visible[-1], visible[:, 0], visible[:, -1])
        if visible.sum() < _MIN_VISIBLE * other.mask.sum() or not all(end.any() for end in ends):
            return None
    return items, owner
