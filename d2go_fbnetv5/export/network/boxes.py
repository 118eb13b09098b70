"""Lite R-CNN's box arithmetic between its networks, on tensors of fixed size: one image, no data-dependent shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """A x 4 XYXY anchors of the first cell -> (height * width * A) x 4, cells row by row."""
    x = torch.arange(width, device=cell.device, dtype=torch.float32) * stride
    y = torch.arange(height, device=cell.device, dtype=torch.float32) * stride
    grid_y = y[:, None].expand(height, width).reshape(-1)
    grid_x = x[None, :].expand(height, width).reshape(-1)
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=1)
    return (shifts[:, None, :] + cell[None, :, :]).reshape(-1, 4)


def decode(boxes: Tensor, deltas: Tensor, weights: list[float]) -> Tensor:
    """Move ... x 4 XYXY boxes by ... x 4 deltas (dx, dy, dw, dh, multiplied by ``weights``).

    A side grows 62.5 times at most, as in Faster R-CNN.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    moved = deltas[..., :2] / torch.tensor(weights[:2], device=boxes.device) * size + centre
    scale = (deltas[..., 2:] / torch.tensor(weights[2:], device=boxes.device)).clamp(
        max=math.log(1000.0 / 16)
    )
    half = 0.5 * scale.exp() * size
    return torch.cat([moved - half, moved + half], dim=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut ... x 4 boxes to an image."""
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def propose(
    objectness: Tensor,
    deltas: Tensor,
    cell: Tensor,
    stride: int,
    image_size: tuple[int, int],
    before: int,
    after: int,
    iou: float,
) -> tuple[Tensor, Tensor]:
    """The RPN's best boxes: 1 x A x h x w logits and 1 x 4A x h x w deltas -> ``after`` x 4 boxes, ``after`` booleans.

    Args:
        cell: A x 4 anchors of the first cell.
        image_size: (height, width) in pixels; boxes are cut to it.
        before: how many of the best pass into NMS; iou: above which NMS drops the lower-scored box.

    Returns:
        boxes, best first, and which of them there are: the rest is zeros.
    """
    anchors, height, width = cell.shape[0], objectness.shape[2], objectness.shape[3]
    logits = objectness[0].permute(1, 2, 0).reshape(-1)
    moves = deltas[0].view(anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = grid_anchors(cell, height, width, stride)
    # A small image has fewer anchors than ``before``.
    logits = torch.cat([logits, logits.new_full((before,), -math.inf)])
    moves = torch.cat([moves, moves.new_zeros((before, 4))])
    boxes = torch.cat([boxes, boxes.new_zeros((before, 4))])
    scores, best = logits.topk(before)
    boxes = clip(decode(boxes[best], moves[best], [1.0, 1.0, 1.0, 1.0]), image_size[0], image_size[1])
    sides = boxes[:, 2:] - boxes[:, :2]
    scores = torch.where((sides >= 1e-3).all(dim=1), scores, torch.full_like(scores, -math.inf))
    boxes, scores, _ = _keep(boxes, scores, boxes, after, iou)
    return boxes, scores > -math.inf


def detect(
    scores: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    present: Tensor,
    image_size: tuple[int, int],
    threshold: Tensor,
    iou: float,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The box head's R x K probabilities and R x K x 4 deltas of R x 4 proposals -> the ``count`` best detections.

    Args:
        present: R booleans, which proposals there are.
        threshold: a number; detections that score less are dropped; iou: above which NMS drops the lower-scored of two
            boxes of one class.

    Returns:
        ``count`` x 4 boxes, ``count`` scores, best first, and ``count`` int64 labels; where there are fewer, the rest
        has score 0, label -1 and a box of zeros.
    """
    classes = scores.shape[1]
    boxes = decode(proposals[:, None, :].expand(-1, classes, -1), deltas, [10.0, 10.0, 5.0, 5.0])
    boxes = clip(boxes, image_size[0], image_size[1]).reshape(-1, 4)
    wanted = (scores > threshold) & present[:, None]
    scores = torch.where(wanted, scores, torch.full_like(scores, -math.inf)).reshape(-1)
    labels = torch.arange(classes, device=scores.device)[None, :].expand(proposals.shape[0], -1).reshape(-1)
    # Boxes of different classes are moved apart, so that they do not meet in NMS.
    apart = boxes + (labels.to(boxes.dtype) * (max(image_size[0], image_size[1]) + 1))[:, None]
    boxes, scores, kept = _keep(boxes, scores, apart, count, iou)
    found = scores > 0
    labels = torch.cat([labels, labels.new_full((1,), -1)])[kept]
    boxes = torch.where(found[:, None], boxes, torch.zeros_like(boxes))
    return boxes, torch.where(found, scores, 0.0), torch.where(found, labels, -1)


def _keep(
    boxes: Tensor, scores: Tensor, apart: Tensor, count: int, iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``count`` of what NMS on ``apart`` keeps, filled up with rows that are not there."""
    kept = nms(apart, scores, iou)
    missing = scores.shape[0]  # the index of a row that is not there
    kept = torch.cat([kept, torch.full((count,), missing, dtype=torch.int64, device=kept.device)])[:count]
    boxes = torch.cat([boxes, boxes.new_zeros((1, 4))])[kept]
    scores = torch.cat([scores, scores.new_full((1,), -math.inf)])[kept]
    return boxes, scores, kept
