"""Object detection: Faster R-CNN on one path (Appendix F.1), of torchvision's RPN and RoI heads."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from d2go_fbnetv5.tasks.anchors import StrideAnchorGenerator, anchor_similarity
from d2go_fbnetv5.tasks.base import (
    DatasetInfo,
    Evaluator,
    Sample,
    Task,
    register_task,
    require_feature,
    require_names,
)
from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.expected_regions import ExpectedRoIHeads, ExpectedRPN
from d2go_fbnetv5.tasks.images import image_sizes
from d2go_fbnetv5.tasks.roi_align import StrideRoIAlign
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import between, require_each

STRIDES = {"path0": 4, "path1": 8, "path2": 16, "path3": 32}  # pixels
_MIN_SIDE = 1e-2  # pixels; a thinner box has no finite regression target


@register_task("det")
class FasterRCNN(Task):
    """The losses of Faster R-CNN over the samples that have ``boxes``; an image without a box is all background.

    Boxes marked in ``box_is_crowd`` are not trained on. The defaults are Detectron2's and torchvision's.

    Args:
        channels: channels of each path.
        info: needs ``box_names``.
        feature: the path that the head reads. Lite R-CNN, which detectors are then trained with, reads ``path1``.
        anchor_sizes: square roots of the anchors' areas, in pixels.
        anchor_ratios: heights / widths.
        rpn_pre_nms_topk_train, rpn_pre_nms_topk_test: proposals of an image before non-maximum suppression.
        rpn_post_nms_topk_train, rpn_post_nms_topk_test: and after.
        rpn_nms_thresh: IoU above which the RPN drops the worse proposal.
        rpn_batch_size_per_image: anchors of an image in the RPN's loss.
        roi_batch_size_per_image: proposals of an image in the box head's loss.
        roi_positive_fraction: the most of them that may be objects.
        roi_output_size: height and width of a proposal's features, in cells.
        roi_sampling_ratio: see ``StrideRoIAlign``.
        box_head_width: of the two hidden layers.
        score_thresh: detections with a lower score are dropped.
        nms_thresh: IoU above which the worse of two detections of a class is dropped.
        detections_per_image: the most that are returned.
        expected_losses: losses of all anchors and proposals, each weighted by its chance to be sampled: the mean of
            what sampled ones may be. A search whose weights rest tells topologies apart by them with far fewer images.
        input_norm: batch norm before the head, over labelled and unlabelled samples alike. Without it the head meets
            features whose scale grows with the number of blocks that a topology keeps.

    Outputs: ``boxes`` (M x 4 XYXY pixels of the sample's image), ``scores`` (M, falling) and ``labels`` (M int64,
    indices of ``info.box_names``).
    """

    in_features = ("path2",)
    primary_metric = "AP"

    def __init__(
        self,
        channels: Mapping[str, int],
        info: DatasetInfo,
        feature: str = "path2",
        anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        rpn_pre_nms_topk_train: int = 2000,
        rpn_pre_nms_topk_test: int = 1000,
        rpn_post_nms_topk_train: int = 2000,
        rpn_post_nms_topk_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_batch_size_per_image: int = 256,
        roi_batch_size_per_image: int = 512,
        roi_positive_fraction: float = 0.25,
        roi_output_size: int = 7,
        roi_sampling_ratio: int = 0,
        box_head_width: int = 1024,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
        expected_losses: bool = False,
        input_norm: bool = False,
    ):
        super().__init__()
        names = require_names(self.name, "box_names", info)
        if not anchor_sizes or not anchor_ratios or min(*anchor_sizes, *anchor_ratios) <= 0:
            raise InputError(
                f"options 'anchor_sizes' and 'anchor_ratios' of task {self.name!r} are {anchor_sizes} and "
                f"{anchor_ratios}; both must hold positive numbers"
            )
        whose = f" of task {self.name!r}"
        require_each(
            between(1),
            whose,
            rpn_pre_nms_topk_train=rpn_pre_nms_topk_train,
            rpn_pre_nms_topk_test=rpn_pre_nms_topk_test,
            rpn_post_nms_topk_train=rpn_post_nms_topk_train,
            rpn_post_nms_topk_test=rpn_post_nms_topk_test,
            rpn_batch_size_per_image=rpn_batch_size_per_image,
            roi_batch_size_per_image=roi_batch_size_per_image,
            roi_output_size=roi_output_size,
            box_head_width=box_head_width,
            detections_per_image=detections_per_image,
        )
        require_each(
            between(0, 1),
            whose,
            rpn_nms_thresh=rpn_nms_thresh,
            roi_positive_fraction=roi_positive_fraction,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
        )
        require_each(between(0), whose, roi_sampling_ratio=roi_sampling_ratio)
        strided = {name: width for name, width in channels.items() if name in STRIDES}
        width, stride = require_feature(self.name, feature, strided), STRIDES[feature]
        self.in_features = (feature,)
        self.norm = nn.BatchNorm2d(width) if input_norm else nn.Identity()
        rpn, roi_heads = (
            (ExpectedRPN, ExpectedRoIHeads) if expected_losses else (RegionProposalNetwork, RoIHeads)
        )
        self.rpn = rpn(
            StrideAnchorGenerator((stride,), (anchor_sizes,), (anchor_ratios,)),
            RPNHead(width, len(anchor_sizes) * len(anchor_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_batch_size_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": rpn_pre_nms_topk_train, "testing": rpn_pre_nms_topk_test},
            post_nms_top_n={"training": rpn_post_nms_topk_train, "testing": rpn_post_nms_topk_test},
            nms_thresh=rpn_nms_thresh,
        )
        self.rpn.box_similarity = anchor_similarity
        self.roi_heads = roi_heads(
            StrideRoIAlign(feature, roi_output_size, stride, roi_sampling_ratio),
            TwoMLPHead(width * roi_output_size**2, box_head_width),
            FastRCNNPredictor(box_head_width, len(names) + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=roi_batch_size_per_image,
            positive_fraction=roi_positive_fraction,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_img=detections_per_image,
        )

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        (name,) = self.in_features
        feature = self.norm(features[name])
        device = feature.device
        targets = None
        if self.training:
            labelled = [i for i, sample in enumerate(batch) if "boxes" in sample]
            if not labelled:
                return {}
            if len(labelled) < len(batch):
                feature = feature[labelled]
                batch = [batch[i] for i in labelled]
            targets = [detection_target(sample, device) for sample in batch]
        sizes = image_sizes(batch)
        # Box arithmetic in half precision is off by whole pixels.
        with torch.autocast(device.type, enabled=False):
            features = {name: feature.float()}
            images = ImageList(features[name], sizes)  # of which only the sizes are read
            proposals, rpn_losses = self.rpn(images, features, targets)
            proposals = [
                boxes if len(boxes) else boxes.new_tensor([[0, 0, width, height]])  # a loss of nothing is NaN
                for boxes, (height, width) in zip(proposals, sizes, strict=True)
            ]
            detections, roi_losses = self.roi_heads(features, proposals, sizes, targets)
        if self.training:
            return {**rpn_losses, **roi_losses}
        return [{**detection, "labels": detection["labels"] - 1} for detection in detections]

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return AveragePrecision(info.box_names)


def detection_target(sample: Sample, device: torch.device) -> dict[str, Tensor]:
    """A labelled sample's boxes for torchvision's heads: ``boxes`` and ``labels``, counted from 1 (0 is background).

    Without crowds, and without boxes that have no width or height.
    """
    boxes = torch.as_tensor(sample["boxes"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(sample["box_labels"], dtype=torch.int64).reshape(-1)
    keep = (boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(1)
    if "box_is_crowd" in sample:
        keep &= ~torch.as_tensor(sample["box_is_crowd"], dtype=torch.bool).reshape(-1)
    kept = {"boxes": boxes[keep], "labels": labels[keep] + 1}
    return {key: value.to(device, non_blocking=True) for key, value in kept.items()}
