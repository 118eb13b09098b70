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
        target: the relative cost that is free, in [0, 1]; 0.5 in the paper. One for each of T tasks, or one for all.
        weight: lambda_c, in units of the loss.
        expected: price the expected cost of a distribution, max(0, E[cost] - target), and not the cost of each sample,
            E[max(0, cost - target)]. Half of the samples cost more than the target where their mean does not, so that
            every block has a price from the first step on, which where losses differ little decides against all.
        absolute: price what is missing to the target, too, lambda_c * |cost - target|, as TuNAS does (Bender et al.
            2020, section 3.2; relative to the full supernet's cost here, and not to the target).
    """

    costs: Tensor
    targets: Tensor

    def __init__(
        self,
        costs: Tensor,
        target: float | Sequence[float] = 0.5,
        weight: float = 1.0,
        expected: bool = False,
        absolute: bool = False,
    ) -> None:
        super().__init__()
        if costs.dim() != 2 or bool((costs < 0).any()) or float(costs.sum()) <= 0:
            raise InputError(f"costs are S x P, not negative and not all zero, found {costs.tolist()}")
        targets = torch.tensor(
            target, dtype=torch.float64
        )  # as exact as the costs that they are compared with
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise InputError(f"the cost target is {target}, allowed is 0 to 1")
        if weight < 0:
            raise InputError(f"the cost weight is {weight}, allowed is 0 or more")
        self.weight = weight
        self.expected = expected
        self._above = torch.abs if absolute else torch.relu
        self.register_buffer("costs", costs.float(), persistent=False)
        self.register_buffer("targets", targets, persistent=False)

    def relative(self, masks: Tensor) -> Tensor:
        """Relative cost of masks (or of probabilities: its expectation): ... x S x P -> ..., in [0, 1]."""
        return (masks.to(self.costs.dtype) * self.costs).sum(dim=(-2, -1)) / self.costs.sum()

    def forward(self, masks: Tensor) -> Tensor:
        """Return the penalty of each mask, or of an expected cost: T x ... x S x P of masks or probabilities -> T x ...

        Where all tasks have one target the first dimension may be any.
        """
        relative = self.relative(masks)
        more = relative.dim() - 1 if self.targets.dim() else 0
        return self._penalty(relative, self.targets[(..., *[None] * more)])

    def _penalty(self, relative: Tensor, targets: Tensor) -> Tensor:
        return self.weight * self._above(relative - targets.to(relative.dtype))

    @torch.no_grad()
    def prices(self, topologies: Sequence[Topology], task: int) -> Tensor:
        """Return the penalty of each of N topologies for a task, by its place: N doubles on the CPU."""
        masks = torch.tensor([topology.mask for topology in topologies], device=self.costs.device)
        target = self.targets[task] if self.targets.dim() else self.targets
        return self._penalty(self.relative(masks), target).double().cpu()

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
            drawn = torch.rand((samples, *probs.shape), generator=generator)
            masks = drawn.to(probs.device, probs.dtype, non_blocking=True) < probs
            shares = self.costs / self.costs.sum()
            relative = self.relative(masks)
            others = (relative - self.targets.to(relative.dtype))[..., None, None] - masks * shares
            slopes = self.weight * (self._above(others + shares) - self._above(others)).mean(dim=0)
        return (slopes.to(probs.dtype) * probs).sum(dim=(-2, -1))
