"""Judging a model on a loader, with batch-norm statistics of its own where it shares weights."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from d2go_fbnetv5.engine.loop import to_device
from d2go_fbnetv5.tasks.base import Evaluator
from d2go_fbnetv5.utils.ranks import is_distributed, world_size

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # fvcore.nn compiles losses, which we don't use, by torch.jit
    from fvcore.nn.precise_bn import update_bn_stats

Batch = list[dict[str, Any]]

# It says at INFO that it begins, once for each of dozens of topologies.
logging.getLogger("fvcore.nn.precise_bn").setLevel(logging.WARNING)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], evaluator: Evaluator) -> dict[str, float]:
    """Return the metrics of a model's predictions.

    Args:
        model: list of samples -> list of output dicts in evaluation mode; its mode is restored.
        batches: this process' part of the data; every process must call this.
        evaluator: collects over processes.
    """
    device = _device(model)
    evaluator.reset()
    with _mode(model, training=False):
        for batch in batches:
            outputs = model([to_device(sample, device) for sample in batch])
            evaluator.process(batch, [to_device(output, torch.device("cpu")) for output in outputs])
    return evaluator.evaluate()


@contextlib.contextmanager
def precise_batch_norm(model: nn.Module, batches: Sequence[Batch]) -> Iterator[None]:
    """Inside, the batch-norm statistics are those of `batches`; afterwards they are as before.

    The statistics that weights gathered while other topologies were sampled fit no single one of them. Only batch
    norms see their training mode: heads predict, so no label is needed. Norms that the model does not run keep
    what they have.

    Args:
        model: list of samples -> anything.
        batches: as many on every process; over processes the statistics are averaged.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    used: set[nn.Module] = set()
    hooks = [norm.register_forward_pre_hook(lambda module, _: used.add(module)) for norm in norms]
    device = _device(model)
    try:
        with _mode(model, training=False):
            for norm in norms:
                norm.train()
            moved = ([to_device(sample, device) for sample in batch] for batch in batches)
            update_bn_stats(model, moved, num_iters=len(batches))
        for norm, buffers in zip(norms, before, strict=True):
            if norm not in used:
                _restore(norm, buffers)
        _average([norm for norm in norms if norm in used])
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, buffers in zip(norms, before, strict=True):
            _restore(norm, buffers)


@torch.no_grad()
def _average(norms: Sequence[nn.Module]) -> None:
    """Population statistics over processes: E[x] and E[x^2] are averaged."""
    if not is_distributed() or not norms:
        return
    statistics = [(norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for norm in norms]
    moments = [torch.stack([mean, variance + mean.square()]) for mean, variance in statistics]
    both = torch.cat(moments, dim=1)  # one collective for all norms
    dist.all_reduce(both)
    averages = (both / world_size()).split([m.shape[1] for m in moments], 1)
    for (mean, variance), (average, square) in zip(statistics, averages, strict=True):
        mean.copy_(average)
        variance.copy_(square - average.square())


@torch.no_grad()
def _restore(norm: nn.Module, buffers: Sequence[torch.Tensor]) -> None:
    for buffer, value in zip(list(norm.buffers(recurse=False)), buffers, strict=True):
        buffer.copy_(value)


@contextlib.contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The whole model in one mode; afterwards each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device
