"""Joint transforms: an image's labels move as it does, each in its own way (`tasks.labels`).

``height`` and ``width`` of a transformed sample are the frame that its labels are in and that its predictions are
judged in. In training that is the transformed image. In evaluation it is the original one: only the image is resized.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from d2go_fbnetv5.data.moves import Move, move_labels
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.tasks.labels import LABELS, LabelKind, check_labels
from d2go_fbnetv5.utils.errors import InputError

# ImageNet's mean colour, which is zero after the usual normalisation.
FILL_COLOUR = (124, 116, 104)
_IGNORE = DatasetInfo.sem_seg_ignore
Size = int | tuple[int, int]


class TrainTransform:
    """Resize, random crop, random flip, colour jitter.

    ``transform(sample, seed)`` is a pure function: torch's global generators stay as they are, and neither the
    sample nor its tensors are written to. The image stays uint8; labels that a sample lacks stay missing, and those
    that evaluation alone reads are left out.

    Args:
        short_side: the image's short side after resizing, in pixels; of several one is drawn per sample.
        crop: side, or (height, width), of the random crop; None for no crop. A smaller image is padded: the image
            with grey, the label map with 255 (don't care).
        flip: probability of a horizontal flip. Let it be 0 where mirroring changes the class (digits, letters).
        color: strength of the jitter: brightness, contrast and saturation are each scaled by 1 - color to
            1 + color; 0 turns it off.
        max_size: bound on the long side after resizing, None for none.
        min_visible: a box of which the crop leaves a smaller share of the area is dropped.
        color_ssd: SSD's colour jitter instead: brightness, contrast, saturation and hue, each half of the time.
        max_category: a crop in which one class has more than this share of the labelled pixels is drawn again.
    """

    def __init__(
        self,
        short_side: int | Sequence[int] = 256,
        crop: Size | None = 224,
        flip: float = 0.5,
        color: float = 0.4,
        max_size: int | None = None,
        min_visible: float = 0.25,
        color_ssd: bool = False,
        max_category: float = 1.0,
    ) -> None:
        sides = [short_side] if isinstance(short_side, int) else list(short_side)
        _check_sizes("TrainTransform", sides, crop, max_size)
        for name, value in (("flip", flip), ("color", color), ("min_visible", min_visible)):
            if not 0 <= value <= 1:
                raise InputError(f"TrainTransform: {name} is {value}, it must be 0 to 1")
        self._sides, self._max_size, self._flip = sides, max_size, flip
        self._crop = (crop, crop) if isinstance(crop, int) else crop
        self._min_visible, self._max_category = min_visible, max_category
        self._colours: torch.nn.Module = v2.Identity()
        if color_ssd:
            self._colours = v2.RandomPhotometricDistort()
        elif color:
            self._colours = v2.ColorJitter(brightness=color, contrast=color, saturation=color)
        self._labels = LABELS.entries  # the very dict; a worker process gets what is registered by then

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        check_labels(sample, self._labels)
        with _seeded(seed):
            move = self._draw(sample)
            image = self._colours(move.image(sample["image"], FILL_COLOUR))
        kept = {
            k: v for k, v in sample.items() if k not in self._labels or self._labels[k].kind != "evaluation"
        }
        result = move_labels(kept, self._labels, move, self._min_visible)
        result["image"] = image.as_subclass(Tensor).contiguous()
        return result

    def _draw(self, sample: dict[str, Any]) -> Move:
        size = self._draw_size(*sample["image"].shape[-2:])
        move = self._draw_crop(size)
        if self._crop is not None and self._max_category < 1 and "sem_seg" in sample:
            for _ in range(9):
                if _is_balanced(move.map(sample["sem_seg"], fill=_IGNORE), self._max_category):
                    break
                move = self._draw_crop(size)
        if self._flip and torch.rand(1) < self._flip:
            move = replace(move, mirror=True)
        return move

    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self._sides[int(torch.randint(len(self._sides), ()))] / min(height, width)
        if self._max_size is not None:
            scale = min(scale, self._max_size / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def _draw_crop(self, size: tuple[int, int]) -> Move:
        """A crop at random; where the image is smaller, of what the image is padded to."""
        if self._crop is None:
            return Move(size, crop=size)
        above, beside = (max(0, wanted - side) for wanted, side in zip(self._crop, size, strict=True))
        room = [s + 2 * p - c for s, p, c in zip(size, (above, beside), self._crop, strict=True)]
        top, left = (int(torch.randint(0, r + 1, ())) if r else 0 for r in room)
        return Move(size, self._crop, (top, left), (above, beside))


def _is_balanced(labels: Tensor, limit: float) -> bool:
    """Return whether no class has more than ``limit`` of the labelled pixels."""
    counts = labels[labels != _IGNORE].unique(return_counts=True)[1]
    return len(counts) > 0 and bool(counts.max() <= limit * counts.sum())


class ClassifyTransform:
    """Training images of classifiers: a crop of random area and shape, resized; flip; colours; erasing.

    ``transform(sample, seed)`` is a pure function, as that of `TrainTransform`. Labels that have a place in the image
    (boxes, maps, points) would not fit any more and are left out of what it returns.

    Args:
        crop: side, or (height, width), of what it returns.
        area: the least and the greatest share of the image's area that the crop keeps.
        flip: probability of a horizontal flip.
        color: strength of the jitter of brightness, contrast and saturation; 0 turns it off.
        rand_augment: magnitude of RandAugment, two random operations an image, 0 to 30; 0 turns it off.
        erase: probability that a random rectangle is erased.
    """

    def __init__(
        self,
        crop: Size = 224,
        area: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        color: float = 0.4,
        rand_augment: int = 0,
        erase: float = 0.0,
    ) -> None:
        steps: list[torch.nn.Module] = [v2.RandomResizedCrop(crop, scale=area)]
        if flip:
            steps.append(v2.RandomHorizontalFlip(flip))
        if rand_augment:
            steps.append(v2.RandAugment(magnitude=rand_augment, fill=list(FILL_COLOUR)))
        if color:
            steps.append(v2.ColorJitter(brightness=color, contrast=color, saturation=color))
        if erase:
            steps.append(v2.RandomErasing(erase, value=list(FILL_COLOUR)))
        self._change = v2.Compose(steps)
        self._labels = LABELS.entries

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        check_labels(sample, self._labels)
        placeless = LabelKind("plain")
        result = {k: value for k, value in sample.items() if self._labels.get(k, placeless) == placeless}
        with _seeded(seed):
            image = self._change(tv_tensors.Image(sample["image"]))
        result["image"] = image.as_subclass(Tensor).contiguous()
        result["height"], result["width"] = (int(side) for side in result["image"].shape[-2:])
        return result


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU starts from `seed`; afterwards it is as before."""
    # Only the CPU's generator: torch.manual_seed would reseed the GPUs' as well.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class EvalTransform:
    """Resize, and crop the centre if ``crop`` is given. ``seed`` is there for the common signature and unused.

    Labels stay in the original image's pixels, whose ``height`` and ``width`` the sample has, for predictions are
    judged there. With ``crop`` they are those of the part of the original that the crop shows, to whole pixels, and
    ``height`` and ``width`` are that part's.

    Args:
        short_side: the image's short side after resizing, in pixels; None keeps the image's size.
        crop: side, or (height, width), of the centre crop; at most ``short_side``. None for the whole image.
        max_size: bound on the long side after resizing, None for none; not together with ``crop``.
        min_visible: a box of which the crop leaves a smaller share of the area is dropped.
    """

    def __init__(
        self,
        short_side: int | None = 256,
        crop: Size | None = None,
        max_size: int | None = None,
        min_visible: float = 0.25,
    ) -> None:
        _check_sizes("EvalTransform", [] if short_side is None else [short_side], crop, max_size)
        if crop is not None:
            largest = crop if isinstance(crop, int) else max(crop)
            if short_side is None or largest > short_side:
                raise InputError(
                    f"EvalTransform: crop is {crop}, it must be at most short_side, {short_side}"
                )
            if max_size is not None:
                raise InputError("EvalTransform: crop and max_size exclude each other")
        self.short_side, self.crop, self.max_size = short_side, crop, max_size
        self._min_visible = min_visible
        self._labels = LABELS.entries

    def __call__(self, sample: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        check_labels(sample, self._labels)
        size = tuple(sample["image"].shape[-2:])
        move, resized = Move(size, size), self._resized(size)
        image = Move(resized, resized).image(sample["image"], FILL_COLOUR)
        if self.crop is not None:
            crop = (self.crop, self.crop) if isinstance(self.crop, int) else tuple(self.crop)
            image = v2.functional.center_crop(image, list(crop))
            move = _shown(size, resized, crop)
        result = move_labels(sample, self._labels, move, self._min_visible)
        result["image"] = image.as_subclass(Tensor).contiguous()
        return result

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.short_side is None:
            return size
        short, long = self.short_side, int(self.short_side * max(size) / min(size))
        if self.max_size is not None and long > self.max_size:
            short, long = max(1, int(self.max_size * short / long)), self.max_size
        return (short, long) if size[0] <= size[1] else (long, short)


def _shown(original: tuple[int, int], resized: Sequence[int], crop: Sequence[int]) -> Move:
    """The part of the original, to whole pixels, that the centre crop of the resized image shows."""
    (top, height), (left, width) = map(_shown_side, original, resized, crop)
    return Move(original, (height, width), (top, left))


def _shown_side(whole: int, side: int, kept: int) -> tuple[int, int]:
    first = round((side - kept) / 2)  # as torchvision has it
    low, high = (round(place * whole / side) for place in (first, first + kept))
    low = min(low, whole - 1)
    return low, max(high - low, 1)


def _check_sizes(owner: str, sides: Sequence[int], crop: Size | None, max_size: int | None) -> None:
    crops = [] if crop is None else [crop] if isinstance(crop, int) else list(crop)
    # torch cannot resize to a single pixel.
    if any(side < 2 for side in sides) or (owner == "TrainTransform" and not sides):
        raise InputError(f"{owner}: short_side is {list(sides)}, sizes must be at least 2")
    if any(side < 1 for side in crops):
        raise InputError(f"{owner}: crop is {crop}, it must be at least 1")
    if max_size is not None and sides and max_size <= max(sides):
        raise InputError(f"{owner}: max_size is {max_size}, it must be greater than short_side, {max(sides)}")
