"""Labels drawn on images: boxes, label maps, and lines of text; one colour a class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from d2go_fbnetv5.utils.opencv import opencv

Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_FONT_SIZE = 16
_BOX_FONT_SIZE = 12


def class_color(label: int) -> Color:
    """Return a class' colour: hues by the golden angle, so that neighbours in the list differ."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_boxes(image: Tensor, boxes: Tensor, labels: Sequence[int], captions: Sequence[str]) -> Tensor:
    """3 x H x W uint8: the image with M boxes (M x 4 XYXY pixels) in the colours of their classes."""
    if not len(boxes):
        return image
    colors = [class_color(label) for label in labels]
    picture, canvas = _canvas(draw_bounding_boxes(image, boxes, colors=colors, width=2))
    font = ImageFont.load_default(size=_BOX_FONT_SIZE)
    for (left, top, _, _), caption, color in zip(boxes.tolist(), captions, colors, strict=True):
        _draw_line(canvas, (left + 2, top + 2), caption, color, font)
    return _tensor(picture)


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


def draw_depth(depth: Tensor) -> Tensor:
    """3 x H x W uint8: a map of depth (H x W, positive) in colours, from red for the nearest to blue for the farthest.

    Colours go by 1 / depth, as what is near differs more to the eye.
    """
    cv2, nearness = opencv(), 1 / depth.double()
    least, most = nearness.aminmax()
    levels = (255 * (nearness - least) / (most - least).clamp(min=1e-12)).round().to(torch.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(levels.numpy(), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(picture).permute(2, 0, 1)


def draw_lines(image: Tensor, lines: Sequence[str], colors: Sequence[Color] | None = None) -> Tensor:
    """Draw lines of text in the upper left corner of the image, on a dark ground."""
    picture, canvas = _canvas(image)
    font = ImageFont.load_default(size=max(9, min(_FONT_SIZE, image.shape[-2] // (len(lines) + 1))))
    top = 0.0
    for line, color in zip(lines, colors or [(255, 255, 255)] * len(lines), strict=True):
        top = _draw_line(canvas, (2, top), line, color, font)
    return _tensor(picture)


def _draw_line(
    canvas: ImageDraw.ImageDraw, at: tuple[float, float], line: str, color: Color, font: Font
) -> float:
    """Draws a line of text from its upper left corner; returns where the next one may begin."""
    left, upper, right, lower = canvas.textbbox(at, line, font=font)
    canvas.rectangle((left - 2, upper - 1, right + 2, lower + 1), fill=(0, 0, 0, 160))
    canvas.text(at, line, fill=color, font=font)
    return lower + 2


def _canvas(image: Tensor) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return picture, ImageDraw.Draw(picture, "RGBA")


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
