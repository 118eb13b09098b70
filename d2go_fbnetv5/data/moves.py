"""An image's geometry changed, and its labels with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.tasks.images import label_size
from d2go_fbnetv5.tasks.labels import LABELS, LabelKind

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Move:
    """An image is resized, padded on all four sides, cropped and perhaps mirrored.

    Attributes:
        size: what it is resized to.
        crop: what is cut out.
        corner: (top, left) of the crop in the padded image.
        padding: pixels added above and below each, and left and right each.
    """

    size: Size
    crop: Size
    corner: tuple[int, int] = (0, 0)
    padding: tuple[int, int] = (0, 0)
    mirror: bool = False

    def image(self, image: Tensor, fill: Sequence[int]) -> Tensor:
        """C x h x w -> C x H x W, bilinear, padded with the colour ``fill``."""
        resized = v2.functional.resize(tv_tensors.Image(image), list(self.size))
        return self._cut(resized, fill)

    def map(self, values: Tensor, interpolation: str = "nearest", fill: float = 0) -> Tensor:
        """Move a map: ... x h x w -> ... x H x W."""
        values = resize_map(values, self.size, interpolation)
        (above, beside), (top, left), (height, width) = self.padding, self.corner, self.crop
        if above or beside:
            values = F.pad(values, (beside, beside, above, above), value=fill)
        values = values[..., top : top + height, left : left + width]
        return values.flip(-1) if self.mirror else values

    def points(self, points: Tensor, size: Size, mirrored: Sequence[int] = ()) -> Tensor:
        """Move points, ... x 2 or more in an image of ``size``; see `register_label`."""
        points = points.clone() if points.is_floating_point() else points.float()
        for axis, place in ((1, 0), (0, 1)):  # x goes along the width
            scale = self.size[axis] / size[axis]
            points[..., place] = points[..., place] * scale + (self.padding[axis] - self.corner[axis])
        if self.mirror:
            points[..., 0] = self.crop[1] - points[..., 0]
            if mirrored:
                points = points[..., list(mirrored), :]
        return points

    def boxes(self, boxes: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """N x 4 XYXY boxes of an image of ``size``, cut off at the border of the crop, and the share left of each."""
        given = tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=size)
        resized = v2.functional.resize(given, list(self.size))
        left = v2.functional.clamp_bounding_boxes(self._cut(resized, 0)).as_subclass(Tensor)
        return left, _area(left) / _area(resized.as_subclass(Tensor))

    def _cut(self, resized: Tensor, fill: Any) -> Tensor:
        if any(self.padding):
            resized = v2.functional.pad(resized, [self.padding[1], self.padding[0]], fill=fill)
        if any(self.corner) or self.crop != (
            self.size[0] + 2 * self.padding[0],
            self.size[1] + 2 * self.padding[1],
        ):
            resized = v2.functional.crop(resized, *self.corner, *self.crop)
        return v2.functional.horizontal_flip(resized) if self.mirror else resized


def move_labels(
    sample: Sample, labels: Mapping[str, LabelKind], move: Move, min_visible: float, size: Size | None = None
) -> Sample:
    """Return a sample of which all but the image has moved; ``height`` and ``width`` are the crop's.

    Args:
        labels: how each moves, by key.
        min_visible: boxes of which a smaller share is left are dropped, with the rows of other labels that are theirs.
        size: what the labels lie in; None for the image's own.
    """
    size = tuple(sample["image"].shape[-2:]) if size is None else size
    moved, kept = dict(sample), {}
    for key, value in sample.items():
        label = labels.get(key)
        if label is None:
            continue
        if label.kind == "map":
            values = move.map(torch.as_tensor(value), label.interpolation, label.fill)
            moved[key] = values.contiguous()
        elif label.kind == "points":
            moved[key] = move.points(torch.as_tensor(value), size, label.mirrored)
        elif label.kind == "boxes":
            moved[key], share = move.boxes(torch.as_tensor(value), size)
            if label.rows_of is None:
                kept[key] = (share > 0) & (share >= min_visible)
    for key in sample:
        owner = key if key in kept else labels[key].rows_of if key in labels else None
        if owner in kept:
            moved[key] = _rows(moved[key], kept[owner])
    return {**moved, "height": move.crop[0], "width": move.crop[1]}


def labels_in_image(sample: Sample) -> Sample:
    """Return an evaluation's sample, whose labels are in the original's pixels, with those of its image, for a loss."""
    size, shown = label_size(sample), tuple(sample["image"].shape[-2:])
    return sample if size == shown else move_labels(sample, LABELS.entries, Move(shown, shown), 0.0, size)


def resize_map(values: Tensor, size: Size, interpolation: str = "nearest") -> Tensor:
    """Resize ... x h x w of any type -> ... x H x W; "nearest" or "bilinear"."""
    if tuple(values.shape[-2:]) == size:
        return values
    if interpolation == "bilinear":
        values = values if values.is_floating_point() else values.float()
        flat = values.reshape(1, -1, *values.shape[-2:])
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True)
        return resized.reshape(*values.shape[:-2], *size)
    # By their places, so that numbers of any type stay what they are.
    rows, columns = (
        F.interpolate(torch.arange(old, dtype=torch.float32)[None, None], new, mode="nearest")[0, 0].long()
        for old, new in zip(values.shape[-2:], size, strict=True)
    )
    return values[..., rows[:, None], columns]


def _rows(values: Any, kept: Tensor) -> Any:
    if isinstance(values, Tensor | np.ndarray):
        return values[kept if isinstance(values, Tensor) else kept.numpy()]
    return [value for value, here in zip(values, kept.tolist(), strict=True) if here]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
