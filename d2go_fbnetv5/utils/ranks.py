"""The processes of a run, and what they tell each other; everything works without torch.distributed too."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does what it would do if there were no others, and tells them nothing."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_distributed() -> bool:
    """Return whether this process is one of a torch.distributed group, and works with the others."""
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def rank() -> int:
    """Return this process' number, 0 where it is alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if is_distributed():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Return every process's `value` (anything picklable), in the order of ranks."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Process 0's `value` (anything picklable)."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each key over the processes that have it. Every process must call it."""
    if not is_distributed():
        return dict(values)
    gathered = gather(dict(values))
    keys = list(dict.fromkeys(key for part in gathered for key in part))
    columns = {key: [part[key] for part in gathered if key in part] for key in keys}
    return {key: sum(column) / len(column) for key, column in columns.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model without DistributedDataParallel around it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@torch.no_grad()
def average_batch_norm(*models: nn.Module) -> None:
    """Give every process the mean over processes of the models' batch-norm statistics, in place, in two collectives.

    Each process gathers its own while it trains, and so does an average of its weights; those that are evaluated or
    stored should see all images. Every process must call it.
    """
    if not is_distributed():
        return
    modules = (module for model in models for module in model.modules())
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = (buffer for norm in norms for buffer in (norm.running_mean, norm.running_var))
    buffers = [buffer for buffer in statistics if buffer is not None]
    if not buffers:
        return
    # How many batches each has seen depends on what it sampled, and nothing on that: process 0's stands for all.
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    first = torch.stack(counts)
    dist.broadcast(first, src=0)
    for count, value in zip(counts, first, strict=True):
        count.copy_(value)
    flat = torch.cat(buffers)
    dist.all_reduce(flat)
    flat /= world_size()
    for buffer, mean in zip(buffers, flat.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


def side_by_side(values: Tensor) -> tuple[Tensor, ...]:
    """Lay all ranks' K x T x N side by side in the last dimension, in the order of ranks, as K tensors."""
    if world_size() > 1:
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values.contiguous())
        values = torch.cat(parts, dim=-1)
    return tuple(values.unbind(0))
