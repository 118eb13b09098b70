"""The cost regulariser (Appendix E, "Cost regularization")."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CostRegularizer(nn.Module):
    """lambda_c * max(0, sum_b a_b c_b / sum_b c_b - target), added to every task's loss.

    Args:
        costs: S x P, c_b of each searchable block in any unit (``BlockCosts.matrix``).
        target: the relative cost that is free, in [0, 1]; 0.5 in the paper.
        weight: lambda_c, in units of the loss.
    """

    costs: Tensor

    def __init__(self, costs: Tensor, target: float = 0.5, weight: float = 1.0) -> None:
        super().__init__()
        if costs.dim() != 2 or bool((costs < 0).any()) or float(costs.sum()) <= 0:
            raise ValueError(f"costs are S x P, not negative and not all zero, found {costs.tolist()}")
        if not 0 <= target <= 1:
            raise ValueError(f"the cost target is {target}, allowed is 0 to 1")
        if weight < 0:
            raise ValueError(f"the cost weight is {weight}, allowed is 0 or more")
        self.target = target
        self.weight = weight
        self.register_buffer("costs", costs.float(), persistent=False)

    def relative(self, masks: Tensor) -> Tensor:
        """Relative cost of masks (or of probabilities: its expectation): ... x S x P -> ..., in [0, 1]."""
        return (masks.to(self.costs.dtype) * self.costs).sum(dim=(-2, -1)) / self.costs.sum()

    def forward(self, masks: Tensor) -> Tensor:
        """The penalty of each mask: N x S x P -> N."""
        return self.weight * torch.relu(self.relative(masks) - self.target)
