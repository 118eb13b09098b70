"""Assigns queries to segments at least total cost (MaskFormer, section 3.2)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@torch.no_grad()
def matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    valid: Tensor,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
) -> Tensor:
    """Return the cost of giving query q segment m: Q x M.

    -p_q(class of m), the focal loss averaged over the valid pixels, and the dice loss, each with its weight.

    Args:
        class_logits: Q x (K + 1), "no object" last.
        mask_logits: Q x h x w.
        labels: M class indices.
        masks: M x h x w, 0 or 1.
        valid: h x w booleans; other pixels (padding, don't care) have no part in the cost.

    The last three may lie on the host: then a GPU need not catch up for the number of valid pixels.
    """
    device = class_logits.device
    pixels = valid.flatten().nonzero()[:, 0]
    truth, labels = (x.to(device, non_blocking=True) for x in (masks.flatten(1)[:, pixels], labels))
    pixels = pixels.to(device, non_blocking=True)
    # In half precision the products of so many pixels are off by more than the costs differ.
    with torch.autocast(device.type, enabled=False):
        class_cost = -class_logits.float().softmax(1)[:, labels]
        logits, truth = mask_logits.float().flatten(1)[:, pixels], truth.float()  # Q x P, M x P
        prob = logits.sigmoid()
        on = FOCAL_ALPHA * (1 - prob) ** FOCAL_GAMMA * F.softplus(-logits)
        off = (1 - FOCAL_ALPHA) * prob**FOCAL_GAMMA * F.softplus(logits)
        mask_cost = (on @ truth.T + off @ (1 - truth).T) / max(1, logits.shape[1])
        dice_cost = 1 - (2 * prob @ truth.T + 1) / (prob.sum(1)[:, None] + truth.sum(1)[None] + 1)
        return class_weight * class_cost + mask_weight * mask_cost + dice_weight * dice_cost


def hungarian_match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one-to-one assignment whose total cost no other has less of.

    Args:
        cost: Q x M. Entries that are not finite count as very bad, so that a diverged network shows in its
            losses and not here.

    Returns:
        Indices of queries and, in the same order, of their segments: min(Q, M) each.
    """
    finite = torch.nan_to_num(cost.detach().double(), nan=1e9, posinf=1e9, neginf=-1e9)
    queries, segments = linear_sum_assignment(finite.cpu().numpy())
    return torch.as_tensor(queries, device=cost.device), torch.as_tensor(segments, device=cost.device)
