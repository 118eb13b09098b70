"""The cost regulariser (Appendix E, "Cost regularization")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.utils.errors import InputError


class CostRegularizer(nn.Module):
    """lambda_c * max(0, sum_b a_b c_b / sum_b c_b - target), added to every task's loss.

    Args:
        costs: S x P, c_b of each searchable block in any unit (``BlockCosts.matrix``).
        target: the relative cost that is free, in [0, 1]; 0.5 in the paper.
        weight: lambda_c, in units of the loss.
        expected: price the expected cost of a distribution, max(0, E[cost] - target), and not the cost of each sample,
            E[max(0, cost - target)]. Half of the samples cost more than the target where their mean does not, so that
            every block has a price from the first step on, which where losses differ little decides against all.
    """

    costs: Tensor

    def __init__(
        self, costs: Tensor, target: float = 0.5, weight: float = 1.0, expected: bool = False
    ) -> None:
        super().__init__()
        if costs.dim() != 2 or bool((costs < 0).any()) or float(costs.sum()) <= 0:
            raise InputError(f"costs are S x P, not negative and not all zero, found {costs.tolist()}")
        if not 0 <= target <= 1:
            raise InputError(f"the cost target is {target}, allowed is 0 to 1")
        if weight < 0:
            raise InputError(f"the cost weight is {weight}, allowed is 0 or more")
        self.target = target
        self.weight = weight
        self.expected = expected
        self.register_buffer("costs", costs.float(), persistent=False)

    def relative(self, masks: Tensor) -> Tensor:
        """Relative cost of masks (or of probabilities: its expectation): ... x S x P -> ..., in [0, 1]."""
        return (masks.to(self.costs.dtype) * self.costs).sum(dim=(-2, -1)) / self.costs.sum()

    def forward(self, masks: Tensor) -> Tensor:
        """Return the penalty of each mask, or of an expected cost: ... x S x P of masks or probabilities -> ..."""
        return self.weight * torch.relu(self.relative(masks) - self.target)

    @torch.no_grad()
    def prices(self, topologies: Sequence[Topology]) -> Tensor:
        """Return the penalty of each of N topologies, N doubles on the CPU."""
        masks = torch.tensor([topology.mask for topology in topologies], device=self.costs.device)
        return self(masks).double().cpu()

    def expectation(self, probs: Tensor, generator: torch.Generator, samples: int = 256) -> Tensor:
        """Return a surrogate of E_{a ~ p}[penalty(a)]: its gradient, not its value, is an unbiased estimate.

        A penalty needs no network, so that far more masks than those of a step can be tried, and each with either
        state of each block: dE / dpi_b = E[penalty(a | a_b = 1) - penalty(a | a_b = 0)].

        Args:
            probs: T x S x P, differentiable.
            generator: a CPU generator.

        Returns:
            T values.
        """
        with torch.no_grad():
            masks = torch.rand((samples, *probs.shape), generator=generator).to(probs) < probs
            shares = self.costs / self.costs.sum()
            others = (self.relative(masks) - self.target)[..., None, None] - masks * shares
            slopes = self.weight * (torch.relu(others + shares) - torch.relu(others)).mean(dim=0)
        return (slopes.to(probs.dtype) * probs).sum(dim=(-2, -1))
