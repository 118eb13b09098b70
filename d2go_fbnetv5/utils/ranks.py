"""The processes of a run, and what they tell each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def side_by_side(values: Tensor) -> tuple[Tensor, ...]:
    """Lay all ranks' K x T x N side by side in the last dimension, in the order of ranks, as K tensors."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        parts = [torch.empty_like(values) for _ in range(world_size)]
        dist.all_gather(parts, values.contiguous())
        values = torch.cat(parts, dim=-1)
    return tuple(values.unbind(0))
