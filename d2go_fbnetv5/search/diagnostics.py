"""What a step tells of a search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.distribution import ArchDistribution
from d2go_fbnetv5.search.estimators import effective_sample_size


def diagnose(
    tasks: Sequence[str],
    distribution: ArchDistribution,
    cost: CostRegularizer | None,
    weights: Tensor,
    losses: Tensor,
    seen: Tensor,
) -> dict[str, Tensor]:
    """Scalars of a step, on the model's device.

    Args:
        tasks: T names, in the order of the distribution.
        weights, losses, seen: T x N of all ranks' samples: importance weights, losses, and whether there is one.

    Returns:
        per task ``task_loss/``, the mean; ``entropy/``, bits a block; ``ess/``, the effective sample size; and with a
        cost ``expected_cost/``, relative.
    """
    found = {
        "task_loss": torch.where(seen, losses, 0.0).sum(dim=1) / seen.sum(dim=1).clamp_min(1),
        "entropy": distribution.entropy(),
        "ess": effective_sample_size(weights),
    }
    if cost is not None:
        found["expected_cost"] = cost.relative(distribution.probs.detach())
    return {f"{key}/{name}": values[t] for key, values in found.items() for t, name in enumerate(tasks)}
