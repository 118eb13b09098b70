"""The sizes of images that models and their files take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import MOST_AREA

STEP = 32  # pixels; the stride of Path 3


def is_whole(size: Sequence[int]) -> bool:
    """Return whether both sides are multiples of `STEP`."""
    return all(side % STEP == 0 for side in size)


@dataclass(frozen=True)
class ImageSizes:
    """(height, width) of the images that a file takes: multiples of ``step`` from ``least`` to ``most`` (None: of any
    length), or, where these are equal, that size alone."""

    least: tuple[int, int]
    most: tuple[int, int] | None
    step: int = STEP

    @classmethod
    def of(
        cls, size: tuple[int, int], least: int, most: int | None = None, fixed: bool = False
    ) -> ImageSizes:
        """The sizes of a file that is mainly run at ``size``.

        If both its sides are multiples of 32 and it is not to be ``fixed``, a side may be from ``least`` to ``most``
        long, by default twice the longer side. Otherwise the file takes that size alone.
        """
        if fixed or not is_whole(size):
            return cls(size, size)
        return cls((least,) * 2, (2 * max(size) if most is None else most,) * 2)

    @property
    def dynamic(self) -> bool:
        return self.least != self.most

    def takes(self, size: Sequence[int]) -> bool:
        """Return whether the file takes images of a (height, width)."""
        most = self.most or tuple(size)
        fits = all(low <= side <= high for low, side, high in zip(self.least, size, most, strict=True))
        return fits and (not self.dynamic or all(side % self.step == 0 for side in size))

    def check(self, image: Tensor) -> None:
        """Raise an InputError unless the file takes an image: 1 x 3 x H x W, float32, of one of its sizes."""
        if image.dim() != 4 or image.shape[:2] != (1, 3) or image.dtype != torch.float32:
            raise InputError(
                f"an image of {tuple(image.shape)} {image.dtype}; the file takes 1 x 3 x H x W torch.float32"
            )
        if not self.takes(image.shape[-2:]):
            raise InputError(f"an image of {image.shape[-2]}x{image.shape[-1]} pixels; the file takes {self}")

    def __str__(self) -> str:
        low = f"{self.least[0]}x{self.least[1]}"
        if not self.dynamic:
            return f"images of {low} alone"
        high = "any size" if self.most is None else f"{self.most[0]}x{self.most[1]}"
        return f"images of {low} to {high} whose sides are multiples of {self.step}"

    def fitted(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """A 1 x 3 x H x W image as it is, or of ``size`` if the file does not take its own."""
        if self.takes(image.shape[-2:]):
            return image
        return F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 255)

    def dims(self) -> dict[int, Any] | None:
        """Return what `torch.export` takes for a 1 x 3 x H x W image."""
        if self.most is None or not self.dynamic:
            return None
        height, width = (
            Dim(f"{name}_by_{STEP}", min=low // STEP, max=high // STEP)
            for name, low, high in zip(("height", "width"), self.least, self.most, strict=True)
        )
        return {2: STEP * height, 3: STEP * width}

    def to_json(self) -> dict[str, Any]:
        step = {"multiple_of": self.step} if self.dynamic else {}
        return {"min": list(self.least), "max": None if self.most is None else list(self.most), **step}

    @classmethod
    def from_json(cls, content: Any) -> ImageSizes:
        """Read what `to_json` wrote, perhaps edited since. Raises an InputError that names the key."""
        if not isinstance(content, Mapping):
            raise InputError(f"image_sizes is {content!r}, allowed is an object with min and max")
        least: Any = content.get("min")
        most, step = content.get("max"), content.get("multiple_of", STEP)
        for key, value in (("min", least), ("max", most)):
            if not (_is_size(value) or (key == "max" and value is None)):
                raise InputError(f"image_sizes.{key} is {value!r}, allowed is [height, width] in pixels")
        if not _is_side(step):
            raise InputError(f"image_sizes.multiple_of is {step!r}, allowed is 1 or more")
        if most is not None and (most[0] < least[0] or most[1] < least[1]):
            raise InputError(f"image_sizes.max is {most!r}, allowed is {least!r} or more, as min")
        return cls(tuple(least), None if most is None else tuple(most), step)


def guarded(run: Callable[..., Any], described: Mapping[str, Any]) -> Callable[..., Any]:
    """A file's function, for images that the file takes; others are an InputError.

    Args:
        run: of a 1 x 3 x H x W image and what else there may be.
        described: model.json of the file.

    Raises:
        InputError: ``image_sizes`` is missing or wrong.
    """
    sizes = ImageSizes.from_json(described.get("image_sizes"))

    def checked(image: Tensor, *more: Any) -> Any:
        sizes.check(image)
        return run(image, *more)

    return checked


def smallest_side(model: SearchedModel) -> int:
    """Pixels of the smallest image that the model does not pad: Path 3 has more than one feature."""
    return model.padded_size((1, 1))[0]


def fitting_size(model: SearchedModel, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) as it is.

    Raises:
        ValueError: a side is too small for Path 3, or no multiple of what the model pads to; or it is a slip.
    """
    least, divisor = smallest_side(model), model.size_divisibility
    if min(size) < least:
        raise InputError(
            f"size {size[0]}x{size[1]} is too small for Path 3: allowed for family {model.backbone.family.name} are "
            f"sides of {least} pixels or more"
        )
    if size[0] * size[1] > MOST_AREA:
        raise InputError(f"size {size[0]}x{size[1]}: allowed are {MOST_AREA} pixels in all")
    if any(side % divisor for side in size):
        raise InputError(
            f"size {size[0]}x{size[1]}: allowed for a {type(model).__name__} are multiples of {divisor}"
        )
    return size


def usual_size(model: SearchedModel, transform: EvalTransform | None) -> tuple[int, int]:
    """(height, width) of images that evaluation gives the model: its crop, else a wide one with the short side and,
    where it is at most twice as long, the long side; the family's own without a transform."""
    if transform is None or transform.short_side is None:
        side = model.backbone.family.input_size
        return model.padded_size((side, side))
    if transform.crop is not None:
        crop = transform.crop
        height, width = (crop, crop) if isinstance(crop, int) else crop
        return model.padded_size((height, width))
    short, long = transform.short_side, transform.max_size
    return model.padded_size((short, long if long is not None and long <= 2 * short else short))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_side, value))
