"""The second stage of Lite R-CNN: classify proposals and refine their boxes (Faster R-CNN's rules)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align

from d2go_fbnetv5.models.base import zero_loss
from d2go_fbnetv5.models.lite_heads import BoxPredictor


@dataclass(frozen=True)
class BoxTargets:
    """The true boxes of an image: ``boxes`` M x 4 XYXY in pixels, ``labels`` M in 0..K - 1."""

    boxes: Tensor
    labels: Tensor


class ROIHead(nn.Module):
    """Regions of one feature map -> classes and boxes.

    Args:
        box_head: R x C x ``resolution`` x ``resolution`` -> R x D.
        predictor: R x D -> R x (K + 1) logits with the background last, and R x K x 4 box deltas.
        stride: input pixels per feature.
        resolution: of a region's features.
        regions_per_image: sampled in training, of which at most ``positive_fraction`` are objects.
        iou_threshold: a region is an object if its IoU with a true box is at least this.
        score_threshold: predictions below are dropped; nms_threshold: IoU above which the lower-scored of two
            boxes of one class is dropped; max_detections: kept per image.
    """

    def __init__(
        self,
        box_head: nn.Module,
        predictor: BoxPredictor,
        stride: int,
        resolution: int = 6,
        regions_per_image: int = 512,
        positive_fraction: float = 0.25,
        iou_threshold: float = 0.5,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.predictor = predictor
        self.stride = stride
        self.resolution = resolution
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.matcher = Matcher(iou_threshold, iou_threshold, allow_low_quality_matches=False)
        self.sampler = BalancedPositiveNegativeSampler(regions_per_image, positive_fraction)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    @property
    def num_classes(self) -> int:
        return self.predictor.num_classes

    def scores(self, feature: Tensor, proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map N x C x h x w and N lists of boxes -> logits and deltas of all R boxes."""
        regions = roi_align(feature, list(proposals), self.resolution, 1 / self.stride, 0, aligned=True)
        return self.predictor(self.box_head(regions))

    def label(self, proposals: Tensor, target: BoxTargets) -> tuple[Tensor, Tensor]:
        """Return each proposal's class (K is background) and the index of the true box it matches (0 if none)."""
        if len(target.boxes) == 0:
            none = proposals.new_zeros(len(proposals), dtype=torch.int64)
            return none + self.num_classes, none
        match = self.matcher(box_iou(target.boxes, proposals))
        labels = target.labels[match.clamp(min=0)]
        return torch.where(match >= 0, labels, self.num_classes), match.clamp(min=0)

    def losses(
        self, feature: Tensor, proposals: Sequence[Tensor], targets: Sequence[BoxTargets]
    ) -> dict[str, Tensor]:
        """``loss_cls``: mean cross-entropy of the sampled regions; ``loss_box_reg``: their L1 distance in the
        coder's units, summed over objects and divided by the number of regions (as in Detectron2)."""
        boxes, labels, truth = [], [], []
        for proposed, target in zip(proposals, targets, strict=True):
            candidates = torch.cat([proposed.detach(), target.boxes])
            classes, match = self.label(candidates, target)
            positive, negative = self.sampler([(classes < self.num_classes).to(torch.int64)])
            chosen = torch.where(positive[0] | negative[0])[0]
            boxes.append(candidates[chosen])
            labels.append(classes[chosen])
            matched = target.boxes[match[chosen]] if len(target.boxes) else candidates[chosen]
            truth.append(matched)
        if sum(map(len, boxes)) == 0:
            nothing = zero_loss(feature, *self.parameters())
            return {"loss_cls": nothing, "loss_box_reg": nothing}
        logits, deltas = self.scores(feature, boxes)
        classes = torch.cat(labels)
        objects = torch.where(classes < self.num_classes)[0]
        goal = self.coder.encode_single(torch.cat(truth)[objects], torch.cat(boxes)[objects])
        distance = F.l1_loss(deltas[objects, classes[objects]], goal, reduction="sum")
        return {"loss_cls": F.cross_entropy(logits, classes), "loss_box_reg": distance / len(classes)}

    def predict(
        self, feature: Tensor, proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections per image: ``boxes`` M x 4 within the image of (height, width), ``scores`` and ``labels``."""
        logits, deltas = self.scores(feature, proposals)
        counts = [len(boxes) for boxes in proposals]
        scores = logits.softmax(1)[:, :-1]
        boxes = self.coder.decode_single(deltas.flatten(1), torch.cat(list(proposals)))
        boxes = boxes.view(-1, self.num_classes, 4)
        return [
            self._select(s, clip_boxes_to_image(b, size))
            for s, b, size in zip(scores.split(counts), boxes.split(counts), sizes, strict=True)
        ]

    def _select(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        regions, labels = torch.where(scores > self.score_threshold)
        scores, boxes = scores[regions, labels], boxes[regions, labels]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.max_detections]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
