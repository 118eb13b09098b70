"""Joint transforms: image, boxes and label map go through the same torchvision operators."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

# ImageNet's mean colour, which is zero after the usual normalisation.
FILL_COLOUR = (124, 116, 104)
_IGNORE = DatasetInfo.sem_seg_ignore
Size = int | tuple[int, int]


class TrainTransform:
    """Resize, random crop, random flip, colour jitter.

    ``transform(sample, seed)`` is a pure function: torch's global generators stay as they are, and neither the
    sample nor its tensors are written to. The image stays uint8; labels that a sample lacks stay missing.

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
        self._resize = v2.RandomShortestSize(sides, max_size=max_size)
        steps: list[torch.nn.Module] = []
        if crop is not None:
            fill = {tv_tensors.Image: list(FILL_COLOUR), tv_tensors.Mask: _IGNORE, "others": 0}
            random_crop = v2.RandomCrop(crop, pad_if_needed=True, fill=fill)
            steps.append(random_crop if max_category >= 1 else _CategoryCrop(random_crop, max_category))
        if flip:
            steps.append(v2.RandomHorizontalFlip(flip))
        if color_ssd:
            steps.append(v2.RandomPhotometricDistort())
        elif color:
            steps.append(v2.ColorJitter(brightness=color, contrast=color, saturation=color))
        self._change = v2.Compose(steps) if steps else v2.Identity()
        self._min_visible = min_visible

    def __call__(self, sample: dict, seed: int) -> dict:
        with _seeded(seed):
            return _apply(sample, self._resize, self._change, self._min_visible)


class _CategoryCrop(torch.nn.Module):
    """A random crop, drawn up to ten times until no class has more than `limit` of the labelled pixels."""

    def __init__(self, crop: torch.nn.Module, limit: float) -> None:
        super().__init__()
        self.crop, self.limit = crop, limit

    def forward(self, fields: dict) -> dict:
        cropped = self.crop(fields)
        for _ in range(9):
            if "sem_seg" not in cropped:
                break
            labels = cropped["sem_seg"].as_subclass(torch.Tensor)
            counts = labels[labels != _IGNORE].unique(return_counts=True)[1]
            if len(counts) and counts.max() <= self.limit * counts.sum():
                break
            cropped = self.crop(fields)
        return cropped


class ClassifyTransform:
    """Training images of classifiers: a crop of random area and shape, resized; flip; colours; erasing.

    ``transform(sample, seed)`` is a pure function, as that of `TrainTransform`. Boxes and label maps, which would
    not fit any more, are left out of what it returns.

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

    def __call__(self, sample: dict, seed: int) -> dict:
        result = {key: value for key, value in sample.items() if key not in _NOT_CLASSIFIED}
        with _seeded(seed):
            image = self._change(tv_tensors.Image(sample["image"]))
        result["image"] = image.as_subclass(torch.Tensor).contiguous()
        return result


_NOT_CLASSIFIED = ("boxes", "box_labels", "box_is_crowd", "box_areas", "sem_seg")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU starts from `seed`; afterwards it is as before."""
    # Only the CPU's generator: torch.manual_seed would reseed the GPUs' as well.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class EvalTransform:
    """Resize, and crop the centre if ``crop`` is given. ``seed`` is there for the common signature and unused.

    Boxes and label map follow, so predictions and truth share the frame of the transformed image.

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
        self._resize = v2.Identity() if short_side is None else v2.Resize([short_side], max_size=max_size)
        self._change = v2.Identity() if crop is None else v2.CenterCrop(crop)
        self._min_visible = min_visible

    def __call__(self, sample: dict, seed: int = 0) -> dict:
        return _apply(sample, self._resize, self._change, self._min_visible)


def _check_sizes(owner: str, sides: Sequence[int], crop: Size | None, max_size: int | None) -> None:
    crops = [] if crop is None else [crop] if isinstance(crop, int) else list(crop)
    if any(side < 1 for side in sides) or (owner == "TrainTransform" and not sides):
        raise InputError(f"{owner}: short_side is {list(sides)}, sizes must be at least 1")
    if any(side < 1 for side in crops):
        raise InputError(f"{owner}: crop is {crop}, it must be at least 1")
    if max_size is not None and sides and max_size <= max(sides):
        raise InputError(f"{owner}: max_size is {max_size}, it must be greater than short_side, {max(sides)}")


def _apply(sample: dict, resize: Callable, change: Callable, min_visible: float) -> dict:
    """The sample resized (nothing is lost), then changed (a crop may cut boxes)."""
    fields = {"image": tv_tensors.Image(sample["image"])}
    if "boxes" in sample:
        fields["boxes"] = tv_tensors.BoundingBoxes(
            sample["boxes"].reshape(-1, 4), format="XYXY", canvas_size=tuple(sample["image"].shape[-2:])
        )
    if "sem_seg" in sample:
        fields["sem_seg"] = tv_tensors.Mask(sample["sem_seg"])
    resized = resize(fields)
    changed = change(resized)

    result = dict(sample)
    result["image"] = changed["image"].as_subclass(torch.Tensor).contiguous()
    if "sem_seg" in sample:
        result["sem_seg"] = changed["sem_seg"].as_subclass(torch.Tensor).contiguous()
    if "boxes" in sample:
        before = resized["boxes"].as_subclass(torch.Tensor)
        after = v2.functional.clamp_bounding_boxes(changed["boxes"]).as_subclass(torch.Tensor)
        area = _area(after)
        keep = (area > 0) & (area >= min_visible * _area(before))
        result["boxes"] = after[keep]
        for key in ("box_labels", "box_is_crowd", "box_areas"):
            if key in sample:
                result[key] = sample[key][keep]
    return result


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
