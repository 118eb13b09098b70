"""Stopping at a loss or a weight that is not a finite number, without making a GPU wait."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import NonFiniteError


class FiniteGuard:
    """Checks every step's losses: one step late on a GPU, so that it never waits; at once elsewhere."""

    def __init__(self, device: torch.device | str) -> None:
        self._late = torch.device(device).type == "cuda"
        self._pending: _Step | None = None

    def watch(self, iteration: int, losses: Mapping[str, Tensor], topologies: Sequence[Any] = ()) -> None:
        """Take note of a step's detached scalar losses, before its backward pass.

        Raises:
            NonFiniteError: names the loss, the step and the sampled topologies.
        """
        self.check()
        if losses:
            finite = torch.isfinite(torch.stack([loss.float().reshape(()) for loss in losses.values()])).all()
            event = None
            if self._late:
                flag = torch.empty((), dtype=torch.bool, pin_memory=True)
                finite = flag.copy_(finite, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self._pending = _Step(iteration, dict(losses), topologies, finite, event)
        if not self._late:
            self.check()

    def check(self) -> None:
        """Raise if a loss of the last step that was watched is not finite, waiting for it if need be."""
        step, self._pending = self._pending, None
        if step is None:
            return
        if step.event is not None:
            step.event.synchronize()
        if bool(step.finite):
            return
        bad = [
            f"{name} is {value.item()}" for name, value in step.losses.items() if not torch.isfinite(value)
        ]
        sampled = ", ".join(describe_topology(topology) for topology in step.topologies)
        sampled = f" (topologies sampled, as the paths kept at each stage: {sampled})" if sampled else ""
        raise NonFiniteError(f"training stopped at iteration {step.iteration}: {', '.join(bad)}{sampled}")


@dataclass
class _Step:
    iteration: int
    losses: dict[str, Tensor]
    topologies: Sequence[Any]
    finite: Tensor
    event: Any


def describe_topology(topology: Any) -> str:
    """Return a topology on one line: the kept paths of each stage, such as "013|2||0123"."""
    mask = getattr(topology, "mask", None)
    if mask is None:
        return str(topology)
    return "|".join("".join(str(path) for path, kept in enumerate(stage) if kept) for stage in mask)


def first_nonfinite(model: nn.Module) -> str | None:
    """Return the name of a parameter or batch-norm statistic that holds NaN or infinity, if any.

    Other buffers may: an empty place in a window of past losses, for one.
    """
    statistics = (item for item in model.named_buffers() if item[0].endswith(("running_mean", "running_var")))
    for name, value in itertools.chain(model.named_parameters(), statistics):
        if not torch.isfinite(value).all():
            return name
    return None
