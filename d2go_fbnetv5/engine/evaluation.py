"""Judging a model on a loader, with batch-norm statistics of its own where it shares weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from d2go_fbnetv5.engine.loop import images_to_device, to_device
from d2go_fbnetv5.tasks.base import Evaluator
from d2go_fbnetv5.utils.ranks import is_distributed, world_size

Batch = list[dict[str, Any]]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], evaluator: Evaluator) -> dict[str, float]:
    """Return the metrics of a model's predictions.

    Args:
        model: list of samples -> list of output dicts in evaluation mode; its mode is restored.
        batches: this process' part of the data; every process must call this.
        evaluator: collects over processes.
    """
    device = device_of(model)
    evaluator.reset()
    with in_mode(model, training=False):
        for batch in batches:
            outputs = model(images_to_device(batch, device))
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
    norms, device, moments = BatchNorms(model), device_of(model), Moments()
    with norms.restored():
        with in_mode(model, training=False), norms.measuring():
            for batch in batches:
                moved = images_to_device(batch, device)
                norms.measure(moments, partial(model, moved))
        average_over_ranks([moments])
        norms.put(moments)
        yield


class Moments(dict[nn.Module, tuple[int, Tensor, Tensor]]):
    """The statistics of batch norms on some batches: by norm the number of values of a channel, their mean, and that of
    their squares."""

    def add(self, norm: nn.Module, count: int, mean: Tensor, variance: Tensor) -> None:
        """Take in a batch: C means and C unbiased variances of `count` values each."""
        square = mean.square() + variance * ((count - 1) / count)
        if norm not in self:
            self[norm] = (count, mean.clone(), square)
            return
        before, means, squares = self[norm]
        share = count / (before + count)
        self[norm] = (before + count, means + (mean - means) * share, squares + (square - squares) * share)


class BatchNorms:
    """The batch norms of a model that keep statistics: to measure these on batches, and to exchange them.

    All values of all batches count alike ("Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3).
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]
        self._counts: dict[nn.Module, int] = {}  # of the norms that `measure` has run
        self._last = 0  # the number of norms at which it stops; never, if 0

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Afterwards the statistics are as they were before."""
        before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in self.norms]
        try:
            yield
        finally:
            with torch.no_grad():
                for norm, values in zip(self.norms, before, strict=True):
                    for buffer, value in zip(norm.buffers(recurse=False), values, strict=True):
                        buffer.copy_(value)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the norms are in training mode, have the last batch's statistics, and `measure` may be called.

        Norms that do not run keep what they have.
        """
        before = [(norm.momentum, norm.training) for norm in self.norms]
        hooks = [norm.register_forward_hook(self._ran) for norm in self.norms]
        for norm in self.norms:
            norm.train()
            norm.momentum = 1.0
        try:
            yield
        finally:
            for norm, hook, (momentum, training) in zip(self.norms, hooks, before, strict=True):
                norm.momentum, norm.training = momentum, training
                hook.remove()

    @torch.no_grad()
    def measure(self, moments: Moments, run: Callable[[], Any], stop_after: int = 0) -> Any:
        """Call `run`, add to `moments` what the norms meet meanwhile, and return what it gives.

        Args:
            stop_after: so many norms have run, if > 0: what follows is left out, and None comes back.
        """
        self._counts.clear()
        self._last, result = stop_after, None
        with contextlib.suppress(_EnoughError):
            result = run()
        for norm, count in self._counts.items():
            moments.add(norm, count, norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
        return result

    @torch.no_grad()
    def put(self, moments: Moments) -> None:
        """Give norms the statistics that were measured; others keep theirs."""
        for norm, (_, mean, square) in moments.items():
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(square - mean.square())

    def _ran(self, norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        self._counts[norm] = inputs[0].numel() // inputs[0].shape[1]
        if len(self._counts) == self._last:
            raise _EnoughError


class _EnoughError(Exception):
    """Ends a forward pass of which no more is wanted."""


@torch.no_grad()
def average_over_ranks(measured: Iterable[Moments]) -> None:
    """Give every process the mean over processes of what each has measured, in one collective."""
    places = [(moments, norm) for moments in measured for norm in moments]
    if not is_distributed() or not places:
        return
    flat = torch.cat([torch.cat(moments[norm][1:]) for moments, norm in places])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([2 * len(moments[norm][1]) for moments, norm in places])
    for (moments, norm), part in zip(places, parts, strict=True):
        moments[norm] = (moments[norm][0], *part.chunk(2))


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The whole model in one mode; afterwards each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are; the default device of a model without any."""
    return next(model.parameters(), torch.empty(0)).device
