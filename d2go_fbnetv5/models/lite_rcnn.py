"""Lite R-CNN: Faster R-CNN with light heads on Path 1 (Appendix G.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import remove_small_boxes

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.models.base import (
    MOST,
    PIXEL_MEAN,
    PIXEL_STD,
    SearchedModel,
    Sizes,
    chosen,
    require_labels,
    zero_loss,
)
from d2go_fbnetv5.models.lite_heads import (
    WIDTHS,
    BoxPredictor,
    LiteBoxHead,
    LiteRPNHead,
    box_channels,
    rpn_channels,
)
from d2go_fbnetv5.models.roi_head import BoxTargets, ROIHead
from d2go_fbnetv5.tasks.base import DatasetInfo, Sample
from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.images import image_sizes
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import between, require_each

_LEAST_SIDE = 1e-2  # pixels; the logarithm of a smaller box's side is no target


class LiteRCNN(SearchedModel):
    """Proposals from an RPN on Path 1, then a light box head on each proposal's 6 x 6 features.

    Reads ``boxes`` (M x 4 XYXY pixels) and ``box_labels`` (M in 0..K - 1) of a sample; boxes that
    ``box_is_crowd`` marks are left out. Predicts ``boxes``, ``scores`` and ``labels`` within the image.

    Args:
        backbone: has the output ``path1``.
        num_classes: K.
        anchor_sizes: square roots of the anchors' areas in pixels; with the three ``aspect_ratios`` (height
            over width) the paper's 15 anchors.
        train_proposals: boxes kept before and after NMS in training.
        test_proposals: the same in evaluation; the paper passes 30 on.
        regions_per_image: sampled for the box head in training.
        score_threshold: detections that score less are dropped.
        max_detections: kept per image.
        width: of the heads' channels, times the paper's, which are for backbones of 400 MFLOPs and more (Table 7) and
            would be nearly all of a model with a smaller one.
    """

    task, label, names_of = "det", "boxes", "box_names"
    in_features = ("path1",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        anchor_sizes: Sequence[float] = (32.0, 64.0, 128.0, 256.0, 512.0),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        train_proposals: tuple[int, int] = (2000, 1000),
        test_proposals: tuple[int, int] = (1000, 30),
        regions_per_image: int = 512,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        width: float = 1.0,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        super().__init__(backbone, num_classes, pixel_mean, pixel_std, size_divisibility)
        for name, counts in (("train_proposals", train_proposals), ("test_proposals", test_proposals)):
            if len(counts) != 2:
                raise InputError(f"{name} is {counts}; allowed are two numbers, before and after NMS")
            require_each(between(1, MOST), **{f"{name}[{i}]": count for i, count in enumerate(counts)})
        for name, values in (("anchor_sizes", anchor_sizes), ("aspect_ratios", aspect_ratios)):
            require_each(between(1e-3, MOST), **{f"{name}[{i}]": value for i, value in enumerate(values)})
            require_each(between(1, 100), **{f"len({name})": len(values)})
        require_each(between(1, MOST), regions_per_image=regions_per_image, max_detections=max_detections)
        require_each(between(0, 1), score_threshold=score_threshold)
        require_each(WIDTHS, width=width)
        self.test_proposals = test_proposals[1]
        channels, stride = backbone.channels["path1"], backbone.strides["path1"]
        self.rpn = RegionProposalNetwork(
            AnchorGenerator((tuple(anchor_sizes),), (tuple(aspect_ratios),)),
            LiteRPNHead(channels, len(anchor_sizes) * len(aspect_ratios), rpn_channels(width)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": train_proposals[0], "testing": test_proposals[0]},
            post_nms_top_n={"training": train_proposals[1], "testing": test_proposals[1]},
            nms_thresh=0.7,
        )
        box_head = LiteBoxHead(channels, box_channels(width))
        self.roi_head = ROIHead(
            box_head,
            BoxPredictor(box_head.out_channels, num_classes),
            stride,
            regions_per_image=regions_per_image,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls`` and ``loss_box_reg``, named as in Detectron2."""
        feature, sizes = features["path1"], image_sizes(batch)
        labelled = [i for i, sample in enumerate(batch) if "boxes" in sample]
        if not labelled:
            names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
            return {name: zero_loss(feature, *self.parameters()) for name in names}
        targets = [self.targets(batch[i], feature.device) for i in labelled]
        feature = chosen(feature, labelled).float()
        proposals, losses = self.rpn(
            _sized(feature, padded, [sizes[i] for i in labelled]),
            {"path1": feature},
            [{"boxes": target.boxes} for target in targets],
        )
        return {
            "loss_rpn_cls": losses["loss_objectness"],
            "loss_rpn_loc": losses["loss_rpn_box_reg"],
            **self.roi_head.losses(feature, proposals, targets),
        }

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        feature, sizes = features["path1"].float(), image_sizes(batch)
        proposals, _ = self.rpn(_sized(feature, padded, sizes), {"path1": feature})
        return self.roi_head.predict(feature, proposals, sizes)

    def evaluator(self, info: DatasetInfo) -> AveragePrecision:
        return AveragePrecision(info.box_names)

    def targets(self, sample: Sample, device: torch.device) -> BoxTargets:
        """Return the boxes to train on: without crowds, and without boxes that have no area.

        Raises:
            ValueError: a label out of range, or another number of labels than of boxes.
        """
        boxes = torch.as_tensor(sample["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.as_tensor(sample["box_labels"], dtype=torch.int64).reshape(-1)
        if len(boxes) != len(labels):
            raise InputError(
                f"image {sample.get('image_id')}: {len(boxes)} boxes, but {len(labels)} box_labels"
            )
        require_labels(labels, self.num_classes, "box_labels", sample)
        if "box_is_crowd" in sample:
            single = ~torch.as_tensor(sample["box_is_crowd"], dtype=torch.bool).reshape(-1)
            boxes, labels = boxes[single], labels[single]
        kept = remove_small_boxes(boxes, _LEAST_SIDE)
        boxes, labels = boxes[kept], labels[kept]
        return BoxTargets(boxes.to(device, non_blocking=True), labels.to(device, non_blocking=True))


def _sized(feature: Tensor, padded: tuple[int, int], sizes: Sizes) -> ImageList:
    """Return images of which torchvision's RPN asks the padded size and their own ones, and nothing else."""
    return ImageList(feature.new_empty(len(feature), 0, *padded), sizes)
