"""The sizes of images that exported files take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

STEP = 32  # pixels; the stride of Path 3


def is_whole(size: Sequence[int]) -> bool:
    """Whether both sides are multiples of `STEP`."""
    return all(side % STEP == 0 for side in size)


@dataclass(frozen=True)
class ImageSizes:
    """(height, width) of the images that a file takes: multiples of 32 from ``least`` to ``most``, or, where these
    are equal, that size alone."""

    least: tuple[int, int]
    most: tuple[int, int]

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

    def fitted(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """A 1 x 3 x H x W image as it is, or of ``size`` if the file does not take its own."""
        sides = image.shape[-2:]
        fits = all(low <= side <= high for low, side, high in zip(self.least, sides, self.most, strict=True))
        if fits and (is_whole(sides) or not self.dynamic):
            return image
        return F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 255)

    def dims(self) -> dict[int, Any] | None:
        """What `torch.export` takes for a 1 x 3 x H x W image."""
        if not self.dynamic:
            return None
        height, width = (
            Dim(f"{name}_by_{STEP}", min=low // STEP, max=high // STEP)
            for name, low, high in zip(("height", "width"), self.least, self.most, strict=True)
        )
        return {2: STEP * height, 3: STEP * width}

    def to_json(self) -> dict[str, Any]:
        step = {"multiple_of": STEP} if self.dynamic else {}
        return {"min": list(self.least), "max": list(self.most), **step}
