"""Moves each label of a sample when its image is resized, cropped or mirrored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d2go_fbnetv5.tasks.base import DatasetInfo, Sample
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.registry import Registry

KINDS = {
    "plain": "has no place in the image, such as a class or a weight",
    "map": "... x H x W, a value for each pixel of the image",
    "points": "... x 2 or more: x, y in pixels as those of boxes, then whatever belongs to the point",
    "boxes": "N x 4, XYXY pixels",
    "evaluation": "plain, and read in evaluation alone: transforms for training leave it out",
}


@dataclass(frozen=True)
class LabelKind:
    """A label's way to move, told to `register_label`."""

    kind: str
    rows_of: str | None = None
    interpolation: str = "nearest"
    fill: float = 0
    mirrored: tuple[int, ...] = ()


def register_label(
    key: str,
    kind: str,
    *,
    rows_of: str | None = None,
    interpolation: str = "nearest",
    fill: float = 0,
    mirrored: Sequence[int] = (),
) -> None:
    """Say how the label under a sample's ``key`` moves with its image.

    Whatever a sample holds beside single numbers and texts has to be registered: a transform that meets another key
    raises an error, for it cannot know whether the label still fits.

    Args:
        kind: one of ``KINDS``. Boxes are cut off at the border; those of which too little is left are dropped. Points
            keep their coordinates, outside of the image as well.
        rows_of: the key of the boxes that the label has a row for each of, and is dropped with.
        interpolation: of a map, "nearest", or "bilinear" if values between two of it mean something.
        fill: a map's value where a crop reaches beyond the image.
        mirrored: of points, for mirrored images: their new order along the last axis but one, such as that of left
            and right eyes; () if they stay as they are.

    Raises:
        ValueError: something that is not allowed, or a key that is registered in another way.
    """
    label = LabelKind(kind, rows_of, interpolation, fill, tuple(mirrored))
    if kind not in KINDS:
        raise InputError(f"label {key!r}: kind is {kind!r}, allowed are {', '.join(KINDS)}")
    if interpolation not in ("nearest", "bilinear"):
        raise InputError(f"label {key!r}: interpolation is {interpolation!r}, allowed are nearest, bilinear")
    if sorted(label.mirrored) != list(range(len(label.mirrored))):
        raise InputError(f"label {key!r}: mirrored is {label.mirrored}, it must be an order of 0, 1, ...")
    if LABELS.entries.get(key) != label:
        LABELS.add(key, label)


def check_labels(sample: Sample, labels: Mapping[str, LabelKind]) -> None:
    """Raises a ValueError that names a key of the sample of which nobody said how it moves, or one that does not fit.

    Args:
        labels: by key, such as ``LABELS.entries``.
    """
    height, width = size = tuple(sample["image"].shape[-2:])
    for key, value in sample.items():
        shape = tuple(getattr(value, "shape", ()))
        where = f"{key!r} of image {sample.get('image_id')}"
        if key not in labels:
            if (
                value is None
                or isinstance(value, str | int | float)
                or (hasattr(value, "shape") and not shape)
            ):
                continue
            raise InputError(
                f"{where} ({f'of shape {shape}' if shape else f'a {type(value).__name__}'}; the image has {height}x"
                f"{width} pixels) is no known label: say how it moves with the image, once, by d2go_fbnetv5.tasks."
                f'register_label("{key}", kind) with one of the kinds {", ".join(KINDS)}'
            )
        label = labels[key]
        if label.kind == "map" and shape[-2:] != size:
            raise InputError(f"{where} is {shape}, its image {size}")
        if label.rows_of in sample and len(value) != len(sample[label.rows_of]):
            raise InputError(
                f"{where} has {len(value)} entries, its {label.rows_of!r} {len(sample[label.rows_of])}"
            )


LABELS: Registry[LabelKind] = Registry("label")
register_label("image", "plain")  # the transforms' own matter
register_label("boxes", "boxes")
register_label("box_labels", "plain", rows_of="boxes")
register_label("box_is_crowd", "plain", rows_of="boxes")
register_label("box_areas", "evaluation", rows_of="boxes")
register_label("sem_seg", "map", fill=DatasetInfo.sem_seg_ignore)
