"""Anchors laid out by the nominal stride of a feature, and their match with the truth."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou


class StrideAnchorGenerator(AnchorGenerator):
    """torchvision's anchors with given strides, in float32.

    torchvision divides the image's size by the feature's, which is wrong where a feature is not exactly as large as
    its stride says: a 224 pixel image has a 13 x 13 Path 2 in FBNetV3-A, whose cells still lie 16 pixels apart.

    Args:
        strides: pixels between neighbouring cells, one for each feature.
        sizes: square roots of the anchors' areas in pixels, for each feature.
        aspect_ratios: heights / widths, for each feature.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
    ):
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(h * w * A) x 4 XYXY anchors for each image, features after one another, cells row by row."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [feature.shape[-2:] for feature in feature_maps]
        strides = [[torch.full((), stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def anchor_similarity(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return M x N IoU of M boxes and N anchors, where a box that touches no anchor still has the nearest one.

    torchvision's matcher gives every box its best anchors, ties included. For a box that overlaps none, all anchors
    tie at 0 and would all become positives; such boxes occur at borders that the grid does not reach.
    """
    iou = box_iou(boxes, anchors)
    untouched = iou.amax(1, keepdim=True) == 0
    centres, anchor_centres = ((x[:, :2] + x[:, 2:]) / 2 for x in (boxes, anchors))
    # Of all boxes: to know which are untouched a GPU would have to catch up first.
    nearest = torch.cdist(centres, anchor_centres).argmin(1, keepdim=True)
    return iou.scatter(1, nearest, iou.gather(1, nearest) + untouched * torch.finfo(iou.dtype).eps)
