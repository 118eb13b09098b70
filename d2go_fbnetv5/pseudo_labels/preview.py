"""A contact sheet: images of a set with their labels drawn on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from d2go_fbnetv5.data.images import encode_png
from d2go_fbnetv5.data.moves import resize_map
from d2go_fbnetv5.data.multitask import MultitaskDataset
from d2go_fbnetv5.data.transforms import EvalTransform
from d2go_fbnetv5.reports.overlays import draw_boxes, draw_depth, draw_label_map, draw_lines
from d2go_fbnetv5.tasks.images import image_size
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import format_plural, format_share

_SIDE = 384  # pixels, of an image in the sheet
_STRIP = 56  # pixels, for the lines of text below it
_GROUND = 32  # the sheet's grey


def write_preview(dataset: MultitaskDataset, count: int, path: str | Path) -> int:
    """Draws ``count`` images, evenly spread over the set, into one PNG file.

    Returns:
        How many images the sheet has: ``count``, or all there are.

    Raises:
        ValueError: ``count`` is below 1, or the set is empty.
        FileNotFoundError, ValueError: an image or label map is not as the index says.
    """
    if count < 1 or not len(dataset):
        raise InputError(f"a preview of {count} of {len(dataset)} images; at least 1 is needed")
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    tiles = torch.stack([draw_tile(dataset, place) for place in places])
    columns = max(1, round((len(tiles) * (_SIDE + _STRIP) / _SIDE) ** 0.5))
    sheet = make_grid(tiles, nrow=columns, padding=4, pad_value=_GROUND)
    write_atomically(path, encode_png(sheet.permute(1, 2, 0).numpy()))
    return len(places)


def draw_tile(dataset: MultitaskDataset, place: int) -> Tensor:
    """3 x (side + strip) x side uint8: an image with its boxes and its map drawn on it, or its depth where it has
    neither, and below it in words what it is labelled with. Pixels that are don't care show the image as it is."""
    sample, info = dataset[place], dataset.info
    picture, labels, scale = _fit(sample)
    if labels is not None:
        picture = draw_label_map(picture, labels, info.sem_seg_names, info.sem_seg_ignore)
    if "boxes" in sample:
        numbers = sample["box_labels"].tolist()
        captions = [info.box_names[number] for number in numbers]
        boxes = dataset.index.boxes
        if boxes is not None and boxes.scores is not None:
            own = boxes.scores[boxes.starts[place] : boxes.starts[place + 1]].tolist()
            captions = [f"{name} {score:.2f}" for name, score in zip(captions, own, strict=True)]
        picture = draw_boxes(picture, sample["boxes"] * scale, numbers, captions)
    if "depth" in sample and labels is None and "boxes" not in sample:
        depth = F.interpolate(sample["depth"][None, None], image_size(picture))[0, 0]
        picture = draw_depth(depth.clamp(min=torch.finfo(torch.float16).tiny))
    tile = torch.full((3, _SIDE + _STRIP, _SIDE), _GROUND, dtype=torch.uint8)
    tile[:, : picture.shape[1], : picture.shape[2]] = picture
    name = Path(dataset.index.file_names[place]).name
    tile[:, _SIDE:] = draw_lines(tile[:, _SIDE:], [_printable(name), *_in_words(sample, dataset)])
    return tile


def _fit(sample: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The image and its map, resized so that the long side is ``_SIDE``, and what its boxes are multiplied by."""
    height, width = sample["image"].shape[-2:]
    short = max(1, round(_SIDE * min(height, width) / max(height, width)))
    resized = EvalTransform(short)({"image": sample["image"]})["image"]
    image = resized[:, :_SIDE, :_SIDE]  # rounding may have made one pixel more
    labels = sample.get("sem_seg")
    if labels is not None:
        labels = resize_map(labels, tuple(resized.shape[-2:]))
    scale = torch.tensor([image.shape[-1] / width, image.shape[-2] / height] * 2)
    return image, None if labels is None else labels[:_SIDE, :_SIDE], scale


def _in_words(sample: dict[str, Any], dataset: MultitaskDataset) -> list[str]:
    info, words = dataset.info, []
    if info.class_names:
        label = sample.get("class_label")
        words.append("no class" if label is None else info.class_names[label])
    if info.box_names:
        boxes = sample.get("boxes")
        words.append("boxes not labelled" if boxes is None else format_plural(len(boxes), "box", "boxes"))
    if info.sem_seg_names:
        labels = sample.get("sem_seg")
        ignored = None if labels is None else (labels == info.sem_seg_ignore).double().mean().item()
        words.append("no map" if ignored is None else f"{format_share(ignored)} don't care")
    if info.depth_units:
        words.append("depth" if "depth" in sample else "no depth")
    return [_printable(", ".join(words))]


def _printable(text: str) -> str:
    """File names may hold bytes that are no characters."""
    return text.encode("utf-8", "replace").decode("utf-8")
