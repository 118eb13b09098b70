"""A step's losses: each task's of each sampled topology, on this rank and beside those of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2go_fbnetv5.utils.ranks import rank, side_by_side, world_size


@dataclass(frozen=True)
class Pool:
    """The samples of all ranks side by side, M of them, without gradients.

    Attributes:
        ratios: T x M, of `Drawn`.
        losses: T x M; without meaning where not valid.
        valid: T x M booleans: whether the task has a loss of the sample.
        per_rank: N, the samples of each rank.
    """

    ratios: Tensor
    losses: Tensor
    valid: Tensor
    per_rank: int

    def mine(self, values: Tensor) -> Tensor:
        """Return this rank's part of T x M values, T x N, times the number of ranks, over which trainers average."""
        first = rank() * self.per_rank
        return values[:, first : first + self.per_rank] * world_size()


@dataclass(frozen=True)
class StepLosses:
    """Each task's loss of each of this rank's samples.

    Attributes:
        values: T x N, differentiable in the weights; zero where not valid.
        valid: T x N booleans: whether any image of the part has the task's label.
    """

    values: Tensor
    valid: Tensor

    @staticmethod
    def of(losses: Sequence[Sequence[Tensor | None]], zero: Tensor) -> StepLosses:
        """Make them of T rows of N scalars, None where a part has no label; ``zero`` stands in for these."""
        rows = [torch.stack([zero if loss is None else loss for loss in row]) for row in losses]
        valid = torch.tensor([[loss is not None for loss in row] for row in losses])
        return StepLosses(torch.stack(rows), valid.to(zero.device, non_blocking=True))

    def pooled(self, ratios: Tensor) -> Pool:
        """Lay them beside those of the other ranks, by one collective that every rank must call.

        Args:
            ratios: T x N, of `Drawn`.
        """
        values = self.values.detach()
        ratios, losses, valid = side_by_side(torch.stack([ratios, values, self.valid.to(ratios.dtype)]))
        return Pool(ratios, losses, valid > 0.5, values.shape[1])
