"""DigitScenes: handwritten digits on photographs, with exact labels for three tasks and nothing to download."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images

from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

SPLITS = ("train", "val")
DIGIT_NAMES = tuple(str(digit) for digit in range(10))

# Every fifth digit belongs to validation, whatever the seed: no seed of one split can show a digit of the other.
_VAL_EVERY = 5
# The tallest and the smallest digit as shares of the image's short side: 80 and 12 pixels of 128.
_MAX_SHARE, _MIN_SHARE = 80 / 128, 12 / 128
_MIN_LARGEST_SHARE = 40 / 128
# The largest digit is larger than every other one by this factor, in height and in box area.
_LARGEST_MARGIN = 1.4
# At least this share of a digit's pixels stays visible: what is labelled can be seen.
_MIN_VISIBLE = 0.75
# The photographs are dimmed by a factor in this range and the inks are brighter than that leaves anything, so that
# strokes are told from the photograph by their brightness, as chalk is from a blackboard. Inks differ in colour.
_DIMMED = (0.25, 0.5)
_MIN_INK, _MIN_INK_DISTANCE = 160.0, 80.0
_PLACING_TRIES = 12
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass
class _Digit:
    label: int
    top: int
    left: int
    alpha: np.ndarray  # h x w float32 in [0, 1]: how much of a pixel the ink covers
    mask: np.ndarray  # h x w bool: where the ink covers at least half of the pixel

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY around the mask: pixel x covers [x, x + 1)."""
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height


@lru_cache(maxsize=1)
def _digits() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """scikit-learn's digits without their empty borders (h x w float32 in [0, 1]), and their labels."""
    data = load_digits()
    glyphs = []
    for image in data.images.astype(np.float32) / 16:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        glyphs.append(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())
    return tuple(glyphs), data.target.astype(np.int64)


@lru_cache(maxsize=1)
def _photographs() -> tuple[np.ndarray, ...]:
    """scikit-learn's two photographs, H x W x 3 uint8 RGB."""
    return tuple(np.ascontiguousarray(image) for image in load_sample_images().images)


def digit_indices(split: str) -> np.ndarray:
    """Which of scikit-learn's 1797 digits a split draws from."""
    indices = np.arange(len(_digits()[0]))
    held_out = indices % _VAL_EVERY == _VAL_EVERY - 1
    return indices[held_out if split == "val" else ~held_out]


class DigitScenes(torch.utils.data.Dataset):
    """Scenes of 1 to ``max_digits`` handwritten digits in bright inks, drawn on the fly on dimmed crops of two
    photographs.

    A sample has all labels: ``class_label`` is the largest digit (by a clear margin); ``boxes`` are tight around
    the visible pixels of every digit, in the order of drawing; ``sem_seg`` names for every pixel the topmost digit
    (0 = background, digit d = d + 1). Digits may overlap, and at least three quarters of each stay visible.

    ``train`` and ``val`` share neither digits nor photographs' halves. A sample is a function of
    (split, size, max_digits, seed, index) alone.

    Args:
        split: "train" or "val".
        size: height and width in pixels, or one number for both; at least 32. Digits scale with the short side:
            at 128 they are about 12 to 80 pixels tall.
        num_images: length of the set.
        seed: any non-negative integer.
        max_digits: most digits in a scene.
    """

    def __init__(
        self,
        split: str = "train",
        size: int | tuple[int, int] = 128,
        num_images: int = 8192,
        seed: int = 0,
        max_digits: int = 5,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"DigitScenes: split is {split!r}, allowed are {', '.join(SPLITS)}")
        height, width = (size, size) if isinstance(size, int) else (int(side) for side in size)
        for name, value, least in (
            ("size", min(height, width), 32),
            ("num_images", num_images, 1),
            ("seed", seed, 0),
            ("max_digits", max_digits, 1),
        ):
            if value < least:
                raise InputError(f"DigitScenes: {name} is {value}, it must be at least {least}")
        self.split, self.size, self.num_images = split, (height, width), num_images
        self.seed, self.max_digits = seed, max_digits
        self.info = DatasetInfo(
            class_names=DIGIT_NAMES,
            box_names=DIGIT_NAMES,
            sem_seg_names=("background", *DIGIT_NAMES),
        )
        self._indices = digit_indices(split)

    def __len__(self) -> int:
        return self.num_images

    @property
    def sizes(self) -> np.ndarray:
        """N x 2: height and width of every image."""
        return np.tile(self.size, (self.num_images, 1))

    def __getitem__(self, index: int) -> dict:
        """The sample: ``image`` 3 x H x W uint8, ``class_label``, ``boxes``, ``box_labels``, ``sem_seg``, ..."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"DigitScenes has {self.num_images} images, asked for number {index}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        digits, owner = self._arrange(rng)
        image = self._background(rng)
        _paint(image, digits, rng)

        labels = np.array([digit.label for digit in digits], dtype=np.int64)
        boxes = np.array([digit.box for digit in digits], dtype=np.float32)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        # owner is -1 on the background, which picks the last entry.
        sem_seg = np.append(labels + 1, 0)[owner]
        return {
            "image": torch.from_numpy(np.rint(image).astype(np.uint8).transpose(2, 0, 1).copy()),
            "class_label": int(labels[areas.argmax()]),
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(labels),
            "sem_seg": torch.from_numpy(sem_seg),
            "image_id": index,
            "height": self.size[0],
            "width": self.size[1],
        }

    def _arrange(self, rng: np.random.Generator) -> tuple[list[_Digit], np.ndarray]:
        """Digits in the order of drawing, and the H x W map of the topmost digit's place in it (-1 = none)."""
        short = min(self.size)
        least, most = max(short * _MIN_SHARE, 8.0), short * _MAX_SHARE
        largest = self._render(rng, _log_uniform(rng, max(short * _MIN_LARGEST_SHARE, least), most))
        largest_height, largest_area = largest.mask.shape[0], largest.mask.size
        digits, owner = [largest], np.full(self.size, -1, dtype=np.int64)
        owner[largest.window][largest.mask] = 0

        for _ in range(int(rng.integers(self.max_digits))):
            bound = largest_height / _LARGEST_MARGIN
            if bound <= least:
                break
            digit = self._render(rng, _log_uniform(rng, least, bound))
            if (
                _LARGEST_MARGIN * max(digit.mask.shape[0] / largest_height, digit.mask.size / largest_area)
                > 1
            ):
                continue  # such as a wide digit beside a narrow largest one
            for _ in range(_PLACING_TRIES):
                self._place(rng, digit)
                on_top = bool(rng.integers(2))
                drawn = _draw(digits, owner, digit, on_top)
                if drawn is not None:
                    digits, owner = drawn
                    break
        return digits, owner

    def _render(self, rng: np.random.Generator, height: float) -> _Digit:
        """A random digit of the split at a random place, ``height`` pixels tall."""
        glyphs, labels = _digits()
        index = int(rng.choice(self._indices))
        glyph = glyphs[index]
        rows, columns = glyph.shape
        stretch = rng.uniform(0.85, 1.2)
        tall = max(int(round(height)), 4)
        wide = int(np.clip(round(tall * columns / rows * stretch), 3, self.size[1] * _MAX_SHARE))
        # Without a border the interpolation would cut the strokes off where the glyph ends.
        padded = cv2.copyMakeBorder(glyph, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        scale_y, scale_x = tall / rows, wide / columns
        size = (int(round((columns + 2) * scale_x)), int(round((rows + 2) * scale_y)))
        smooth = cv2.resize(padded, size, interpolation=cv2.INTER_CUBIC)
        # The edge, from no ink to all, is as wide as about one pixel of the scene.
        sharpness = max(1.5, 0.4 * min(scale_x, scale_y))
        alpha = np.clip((smooth - smooth.max() / 2) * sharpness + 0.5, 0, 1)
        mask = alpha >= 0.5
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        tight = slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)
        digit = _Digit(int(labels[index]), 0, 0, alpha[tight], mask[tight])
        self._place(rng, digit)
        return digit

    def _place(self, rng: np.random.Generator, digit: _Digit) -> None:
        height, width = digit.mask.shape
        digit.top = int(rng.integers(self.size[0] - height + 1))
        digit.left = int(rng.integers(self.size[1] - width + 1))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A crop of a photograph's half as an H x W x 3 float32 image; train sees the left halves, val the right."""
        photographs = _photographs()
        photograph = photographs[int(rng.integers(len(photographs)))]
        middle = photograph.shape[1] // 2
        half = photograph[:, :middle] if self.split == "train" else photograph[:, middle:]
        height, width = self.size
        fit = min(half.shape[0] / height, half.shape[1] / width)
        zoom = fit * _log_uniform(rng, 0.25, 1.0)
        tall, wide = max(int(height * zoom), 1), max(int(width * zoom), 1)
        top = int(rng.integers(half.shape[0] - tall + 1))
        left = int(rng.integers(half.shape[1] - wide + 1))
        crop = half[top : top + tall, left : left + wide]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        method = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
        image = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method)
        return image.astype(np.float32) * np.float32(rng.uniform(*_DIMMED))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _draw(
    digits: list[_Digit], owner: np.ndarray, digit: _Digit, on_top: bool
) -> tuple[list[_Digit], np.ndarray] | None:
    """The scene with one more digit over or under all others; None if that would hide too much of any of them."""
    if on_top:
        digits, owner = [*digits, digit], owner.copy()
        owner[digit.window][digit.mask] = len(digits) - 1
    else:
        digits, owner = [digit, *digits], np.where(owner >= 0, owner + 1, owner)
        below = owner[digit.window]
        below[digit.mask & (below < 0)] = 0
    for number, other in enumerate(digits):
        visible = owner[other.window] == number
        ends = (
            visible[0],
            visible[-1],
            visible[:, 0],
            visible[:, -1],
        )  # a box stays tight around what is visible
        if visible.sum() < _MIN_VISIBLE * other.mask.sum() or not all(end.any() for end in ends):
            return None
    return digits, owner


def _paint(image: np.ndarray, digits: list[_Digit], rng: np.random.Generator) -> None:
    """Blends the digits into the dimmed H x W x 3 float32 image, each in a bright ink of its own."""
    inks: list[np.ndarray] = []
    for digit in digits:
        colours = rng.uniform(0, 255, (16, 3)).astype(np.float32)
        # Towards white as far as it takes to be bright enough.
        brightness = colours @ _LUMINANCE
        missing = np.clip((_MIN_INK - brightness) / np.maximum(255 - brightness, 1), 0, 1)[:, None]
        colours += missing * (255 - colours)
        distance = np.full(len(colours), np.inf)
        for ink in inks:
            distance = np.minimum(distance, np.linalg.norm(colours - ink, axis=1))
        good = np.flatnonzero(distance >= _MIN_INK_DISTANCE)
        ink = colours[good[0] if len(good) else distance.argmax()]
        inks.append(ink)
        window = image[digit.window]
        window += digit.alpha[..., None] * (ink - window)
