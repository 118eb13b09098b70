"""Labels drawn on images: boxes, label maps, and lines of text; one colour a class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

Color = tuple[int, int, int]

_FONT_SIZE = 16


def class_color(label: int) -> Color:
    """Of a class: hues by the golden angle, so that neighbours in the list differ."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 1.0)
    return tuple(int(255 * value) for value in rgb)


def draw_boxes(image: Tensor, boxes: Tensor, labels: Sequence[int], captions: Sequence[str]) -> Tensor:
    """3 x H x W uint8: the image with M boxes (M x 4 XYXY pixels) in the colours of their classes."""
    if not len(boxes):
        return image
    colors = [class_color(label) for label in labels]
    return draw_bounding_boxes(image, boxes, list(captions), colors=colors, width=2)


def draw_label_map(image: Tensor, labels: Tensor, names: Sequence[str], ignore: int | None = None) -> Tensor:
    """3 x H x W uint8: the image under a veil of its classes' colours, which are named in the corner.

    Args:
        labels: H x W; pixels that are ``ignore`` stay as they are.
    """
    present = [label for label in labels.unique().tolist() if label != ignore]
    if not present:
        return image
    colors = [class_color(label) for label in present]
    masks = torch.stack([labels == label for label in present])
    picture = draw_segmentation_masks(image, masks, alpha=0.6, colors=colors)
    return draw_lines(picture, [names[label] for label in present], colors)


def draw_lines(image: Tensor, lines: Sequence[str], colors: Sequence[Color] | None = None) -> Tensor:
    """The image with lines of text in its upper left corner, on a dark ground."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    canvas = ImageDraw.Draw(picture, "RGBA")
    font = ImageFont.load_default(size=max(9, min(_FONT_SIZE, image.shape[-2] // (len(lines) + 1))))
    top = 0
    for line, color in zip(lines, colors or [(255, 255, 255)] * len(lines), strict=True):
        left, upper, right, lower = canvas.textbbox((2, top), line, font=font)
        canvas.rectangle((left - 2, upper - 1, right + 2, lower + 1), fill=(0, 0, 0, 160))
        canvas.text((2, top), line, fill=color, font=font)
        top = lower + 2
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
