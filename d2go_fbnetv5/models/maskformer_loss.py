"""MaskFormer's loss: classification of every query, focal and dice loss of the matched masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from d2go_fbnetv5.models.base import zero_loss
from d2go_fbnetv5.models.matcher import FOCAL_ALPHA, FOCAL_GAMMA, hungarian_match, matching_cost
from d2go_fbnetv5.tasks.images import image_size
from d2go_fbnetv5.utils.ranks import is_distributed, world_size
from d2go_fbnetv5.utils.rules import one_of, require_each

BIPARTITE, FIXED = "bipartite", "fixed"


@dataclass(frozen=True)
class SegmentPrediction:
    """A decoder layer's prediction: ``class_logits`` N x Q x (K + 1), ``mask_logits`` N x Q x h x w."""

    class_logits: Tensor
    mask_logits: Tensor


@dataclass(frozen=True)
class Segments:
    """The segments of an image: ``labels`` M, ``masks`` M x H x W booleans, and ``valid`` H x W booleans, False
    where the label map says "don't care" and where the image was padded. The order has no meaning."""

    labels: Tensor
    masks: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Segments:
        """Return the same on a device, which need not catch up first."""
        return Segments(*(x.to(device, non_blocking=True) for x in (self.labels, self.masks, self.valid)))


Pairs = tuple[Tensor, Tensor]  # indices of queries, and in the same order of the segments that they match


def segments_of(sem_seg: Tensor, ignore: int) -> Segments:
    """One segment per class of a label map (H x W int64); pixels of ``ignore`` belong to none."""
    labels = sem_seg.unique()
    labels = labels[labels != ignore]
    return Segments(labels, sem_seg[None] == labels[:, None, None], sem_seg != ignore)


def focal_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Sigmoid focal loss of M masks, each the mean over its valid pixels: M x H x W three times -> M."""
    truth, valid = truth.to(logits.dtype), valid.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    prob = logits.sigmoid()
    miss = prob * (1 - truth) + (1 - prob) * truth
    alpha = FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)
    loss = alpha * miss**FOCAL_GAMMA * cross_entropy * valid
    return loss.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def dice_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 |A B| + 1) / (|A| + |B| + 1) of M masks over their valid pixels: M x H x W three times -> M."""
    valid = valid.to(logits.dtype).flatten(1)
    prob, truth = logits.sigmoid().flatten(1) * valid, truth.to(logits.dtype).flatten(1) * valid
    return 1 - (2 * (prob * truth).sum(1) + 1) / (prob.sum(1) + truth.sum(1) + 1)


class MaskFormerLoss(nn.Module):
    """Matches queries to segments and scores them; does not depend on the segments' order.

    Args:
        num_classes: K.
        class_weight, mask_weight, dice_weight: of the three terms, in the matching too.
        no_object_weight: of the queries that match nothing, within the classification.
        over_ranks: divide by the mean number of segments over all processes, each of which must then have a loss.
        matching: which query a segment gets: the one that suits it best, no other having it ("bipartite"), or always
            that of its class's number ("fixed"), with as many queries as classes or more (MaskFormer, section 3.2).
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
        over_ranks: bool = True,
        matching: str = BIPARTITE,
    ) -> None:
        super().__init__()
        require_each(one_of(BIPARTITE, FIXED), matching=matching)
        self.num_classes, self.over_ranks, self.matching = num_classes, over_ranks, matching
        self.weights = (class_weight, mask_weight, dice_weight)
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("class_weights", weight, persistent=False)

    def forward(
        self, predictions: Sequence[SegmentPrediction], targets: Sequence[Segments]
    ) -> dict[str, Tensor]:
        """Weighted losses of each prediction, the last being the network's result.

        Args:
            predictions: with masks of one size; those of earlier decoder layers get auxiliary losses with the suffix
                ``_0``, ``_1``, ...
            targets: N images' segments, all of one (padded) size H x W. On the host, where they were made of label
                maps, they cost a GPU least.

        Returns:
            ``loss_class``, ``loss_mask``, ``loss_dice``, each a scalar.
        """
        losses, device = {}, predictions[-1].class_logits.device
        count = self._mean_over_ranks(sum(len(t.labels) for t in targets), device).clamp(min=1)
        predictions = [SegmentPrediction(p.class_logits.float(), p.mask_logits.float()) for p in predictions]
        matches = self.match(predictions, targets)
        targets = [target.to(device) for target in targets]
        for layer, (prediction, pairs) in enumerate(zip(predictions, matches, strict=True)):
            suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
            for name, loss in self._one(prediction, targets, pairs, count).items():
                losses[f"loss_{name}{suffix}"] = loss
        return losses

    def _one(
        self,
        prediction: SegmentPrediction,
        targets: Sequence[Segments],
        pairs: Sequence[Pairs],
        count: Tensor,
    ) -> dict[str, Tensor]:
        class_logits, mask_logits = prediction.class_logits, prediction.mask_logits
        classes = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        mask, dice = class_logits.new_zeros(()), class_logits.new_zeros(())
        for i, (target, (queries, segments)) in enumerate(zip(targets, pairs, strict=True)):
            if len(target.labels) == 0:
                continue
            classes[i, queries] = target.labels[segments]
            matched = mask_logits[i][None, queries]
            logits = F.interpolate(matched, target.valid.shape, mode="bilinear", align_corners=False)[0]
            valid = target.valid.expand_as(logits)
            mask = mask + focal_loss(logits, target.masks[segments], valid).sum()
            dice = dice + dice_loss(logits, target.masks[segments], valid).sum()
        mask = mask + zero_loss(mask_logits)  # with nothing matched, every parameter still gets a gradient
        if len(targets) > 0:
            cross_entropy = F.cross_entropy(class_logits.transpose(1, 2), classes, self.class_weights)
        else:
            cross_entropy = zero_loss(class_logits)
        class_weight, mask_weight, dice_weight = self.weights
        return {
            "class": class_weight * cross_entropy,
            "mask": mask_weight * mask / count,
            "dice": dice_weight * dice / count,
        }

    def _mean_over_ranks(self, value: int, device: torch.device) -> Tensor:
        total = torch.full((), float(value), device=device)
        if self.over_ranks and is_distributed():
            distributed.all_reduce(total)
            total /= world_size()
        return total

    @torch.no_grad()
    def match(
        self, predictions: Sequence[SegmentPrediction], targets: Sequence[Segments]
    ) -> list[list[Pairs]]:
        """Match each prediction's queries and segments, for each of N images, at the predictions' resolution.

        A GPU has to catch up before the host sees a cost: it does so once, for all of them.
        """
        if self.matching == FIXED:
            device = predictions[-1].class_logits.device
            by_class = [
                (t.labels.to(device, non_blocking=True), torch.arange(len(t.labels), device=device))
                for t in targets
            ]
            return [by_class for _ in predictions]
        shapes = [(p.class_logits.shape[1], len(t.labels)) for p in predictions for t in targets]
        if not shapes:
            return [[] for _ in predictions]
        size = image_size(predictions[-1].mask_logits)
        # As large as the predictions, once for all layers.
        small = [(t.labels, _nearest(t.masks, size), _nearest(t.valid[None], size)[0]) for t in targets]
        costs = torch.cat(
            [
                matching_cost(p.class_logits[i], p.mask_logits[i], *segments, *self.weights).flatten()
                for p in predictions
                for i, segments in enumerate(small)
            ]
        )
        parts = costs.cpu().split([queries * segments for queries, segments in shapes])
        pairs = [hungarian_match(part.view(shape)) for part, shape in zip(parts, shapes, strict=True)]
        indices = torch.cat([torch.stack(pair) for pair in pairs], dim=1).to(costs.device, non_blocking=True)
        found = iter(indices.split([len(queries) for queries, _ in pairs], dim=1))
        return [[(pair[0], pair[1]) for _, pair in zip(targets, found, strict=False)] for _ in predictions]


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """M x H x W at another size, by the rows and columns that ``F.interpolate`` takes."""
    rows, columns = (
        F.interpolate(torch.arange(old, device=masks.device)[None, None].float(), new, mode="nearest")[
            0, 0
        ].long()
        for old, new in zip(image_size(masks), size, strict=True)
    )
    return masks[:, rows][:, :, columns]
