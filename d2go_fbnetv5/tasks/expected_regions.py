"""Faster R-CNN's losses as they are on average over what its samplers may choose: free of their chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

_BETA = 1 / 9  # of torchvision's smooth L1 losses


def sampling_chances(labels: Sequence[Tensor], sampler: BalancedPositiveNegativeSampler) -> Tensor:
    """Return the probability that torchvision's sampler chooses each anchor or proposal of a batch.

    Args:
        labels: of each image, -1 for what is ignored, 0 for background, 1 or more for objects.
        sampler: of which only the sizes are read.

    Returns:
        as many values in 0..1 as there are labels, image by image; their sum is the number that is always chosen.
    """
    batch = torch.cat(list(labels))
    image = torch.cat([torch.full_like(each, i, dtype=torch.int64) for i, each in enumerate(labels)])
    size = sampler.batch_size_per_image
    positive, negative = batch >= 1, batch == 0
    objects, background = (
        torch.zeros(len(labels), device=batch.device).index_add_(0, image, kind.float())
        for kind in (positive, negative)
    )
    of_objects = objects.clamp(max=int(size * sampler.positive_fraction))
    of_background = torch.minimum(background, size - of_objects)
    chance_object = (of_objects / objects.clamp_min(1))[image]
    chance_background = (of_background / background.clamp_min(1))[image]
    return chance_object * positive + chance_background * negative


class ExpectedRPN(RegionProposalNetwork):
    """A region proposal network whose losses are the mean of those of all samples of anchors."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        chances, labelled = sampling_chances(labels, self.fg_bg_sampler), torch.cat(labels)
        said = F.binary_cross_entropy_with_logits(
            objectness.flatten(), labelled.clamp_min(0), reduction="none"
        )
        off = _offsets(pred_bbox_deltas, torch.cat(regression_targets), labelled)
        return (chances * said).sum() / chances.sum(), (chances * off).sum() / chances.sum()


class ExpectedRoIHeads(RoIHeads):
    """Box heads whose losses are the mean of those of all samples of the proposals, each of which is looked at."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training or targets is None:
            return super().forward(features, proposals, image_shapes, targets)
        boxes = [target["boxes"] for target in targets]
        proposals = self.add_gt_proposals(proposals, boxes)
        matched, labels = self.assign_targets_to_proposals(
            proposals, boxes, [target["labels"] for target in targets]
        )
        aims = self.box_coder.encode(
            [
                each[indices] if len(each) else each.new_zeros(len(indices), 4)
                for each, indices in zip(boxes, matched, strict=True)
            ],
            proposals,
        )
        logits, deltas = self.box_predictor(
            self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        )
        chances, classes = sampling_chances(labels, self.fg_bg_sampler), torch.cat(labels)
        said = F.cross_entropy(logits, classes.clamp_min(0), reduction="none")
        of_class = deltas.view(len(classes), -1, 4)[
            torch.arange(len(classes), device=classes.device), classes
        ]
        off = _offsets(of_class, torch.cat(aims), classes)
        return [], {
            "loss_classifier": (chances * said).sum() / chances.sum(),
            "loss_box_reg": (chances * off).sum() / chances.sum(),
        }


def _offsets(predicted: Tensor, aims: Tensor, labels: Tensor) -> Tensor:
    """Return each object's loss of its box's four offsets; 0 for background, which is matched to no box to aim at."""
    aims = torch.where((labels >= 1)[:, None], aims, predicted.detach())
    return F.smooth_l1_loss(predicted, aims, beta=_BETA, reduction="none").sum(dim=1)
