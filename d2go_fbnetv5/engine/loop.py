"""The training loop: a step is three calls, everything else is a hook."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.engine.heartbeat import reach
from d2go_fbnetv5.engine.nonfinite import FiniteGuard
from d2go_fbnetv5.engine.precision import Precision
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import rank, unwrap
from d2go_fbnetv5.utils.seeding import seed_all


class Hook:
    """Something to do around the steps. Every method does nothing unless it is overridden."""

    def before_train(self, loop: TrainLoop) -> None: ...

    def before_step(self, loop: TrainLoop) -> None: ...

    def after_step(self, loop: TrainLoop) -> None: ...

    def after_train(self, loop: TrainLoop) -> None:
        """After the last step of a run that was not interrupted."""

    def close(self) -> None:
        """Whatever way the run ended: give back files and terminals."""


class TrainLoop:
    """Trains any module that turns a list of samples into a dict of scalar losses.

    Args:
        model: in training mode, on its device, perhaps in DistributedDataParallel.
        optimizer: over the model's parameters.
        data: endless batches, the first one that of `start_iteration`.
        max_iter: the iteration to stop before.
        start_iteration: the first one to do, > 0 after a resume.
        hooks: called in this order.
        seed: the run's seed, >= 0; the generators are seeded anew at every step.
        device: where samples' images are moved to.
        precision: autocast and gradient scaling.
        clip_gradients: called with the parameters before each optimizer step.
        grad_accum: in so many parts, which follow one another, a step's batch is run; its gradient is their mean.

    Attributes:
        iteration: the step in progress, from 0.
        losses: of the last step, detached scalars on the device; reading them may wait for it.
        data_time, step_time: seconds the last step waited for data, and took in all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Iterator[list[dict[str, Any]]],
        max_iter: int,
        *,
        start_iteration: int = 0,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        clip_gradients: Any = None,
        grad_accum: int = 1,
    ) -> None:
        self.model, self.optimizer, self.data = model, optimizer, data
        self.max_iter, self.start_iteration, self.iteration = max_iter, start_iteration, start_iteration
        self.hooks = list(hooks)
        self.seed, self.device = seed, torch.device(device)
        self.precision = precision or Precision(self.device)
        self.clip_gradients, self.grad_accum = clip_gradients, grad_accum
        self.guard = FiniteGuard(self.device)
        self.losses: dict[str, Tensor] = {}
        self.data_time = self.step_time = 0.0

    def run(self) -> None:
        """Do the steps from `start_iteration` to `max_iter`.

        Raises:
            NonFiniteError: a loss or a weight is not a finite number.
            InputError: the GPU has too little memory for a step, or for one of a later phase.
        """
        self.model.train()
        try:
            for hook in self.hooks:
                hook.before_train(self)
            if self.device.type == "cuda":
                with _enough_memory("a step of this run"):
                    self.rehearse()
            for iteration in range(self.start_iteration, self.max_iter):
                self.iteration = iteration
                reach(iteration)
                for hook in self.hooks:
                    hook.before_step(self)
                with _enough_memory(f"iteration {iteration}"):
                    self.step()
                for hook in self.hooks:
                    hook.after_step(self)
            self.guard.check()
            for hook in self.hooks:
                hook.after_train(self)
        finally:
            for hook in self.hooks:
                hook.close()

    def rehearse(self) -> None:
        """Try a step of a model's later phase, which leaves no trace, so that too little memory for it shows at once.

        A search's steps need more once its probabilities learn, by which time most of a run is over. The first batch is
        used, and again in the first step.
        """
        model: Any = unwrap(self.model)
        if not hasattr(model, "later_phase") or model.arch_is_on:
            return
        first = next(self.data)
        self.data = itertools.chain([first], self.data)
        with model.later_phase():
            with self.precision.autocast():
                total = sum(model(self._parts(images_to_device(first, self.device))[0]).values())
            # backward() would tell DistributedDataParallel that all of these weights are used in the first step.
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            torch.autograd.grad(total, weights, allow_unused=True)

    def _parts(self, batch: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        size = max(1, -(-len(batch) // self.grad_accum))
        return [batch[first : first + size] for first in range(0, len(batch), size)] or [batch]

    def step(self) -> None:
        """One batch: losses, gradients, update."""
        start = time.perf_counter()
        batch = images_to_device(next(self.data), self.device)
        self.data_time = time.perf_counter() - start
        seed_all(self.seed, rank(), self.iteration)

        parts, found = self._parts(batch), []
        for part in parts:
            with self.precision.autocast():
                losses = self.model(part)
                total = sum(losses.values())
            found.append({name: loss.detach() for name, loss in losses.items()})
            self.guard.watch(self.iteration, found[-1], sampled_topologies(self.model))
            if len(found) == 1:
                self.optimizer.zero_grad()
            # In DistributedDataParallel each part is averaged over processes: a block that the last part does not use
            # would otherwise keep a gradient of this process alone.
            self.precision.backward(total if len(parts) == 1 else total / len(parts))
        self.losses = found[0]
        if len(parts) > 1:
            self.losses = {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}
        self.precision.step(self.optimizer, self.clip_gradients)
        self.step_time = time.perf_counter() - start


@contextlib.contextmanager
def _enough_memory(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU has too little memory for {what}: lower SOLVER.IMS_PER_BATCH, or raise SOLVER.GRAD_ACCUM, or set "
            "SOLVER.AMP.ENABLED True; where SEARCH.SHARED_IMAGES is True, lower SEARCH.SAMPLES_PER_RANK"
        ) from error


def images_to_device(batch: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Return the samples with their images on `device`; a GPU gets all of one type in one copy, for which nobody waits.

    Labels stay on the host, where checking and sorting them out makes nobody wait for a GPU; heads move what is left.
    """
    moved = [dict(sample) for sample in batch]
    blocks: dict[torch.dtype, list[int]] = {}
    for i, sample in enumerate(moved):
        image = sample.get("image")
        if image is not None and device.type == "cuda" and image.device.type == "cpu":
            blocks.setdefault(image.dtype, []).append(i)
        elif image is not None:
            sample["image"] = to_device({"image": image}, device)["image"]
    for dtype, places in blocks.items():
        images = [batch[i]["image"] for i in places]
        counts = [image.numel() for image in images]
        # Pinned memory is kept by torch, and what is in it until the copy is done.
        block = torch.empty(sum(counts), dtype=dtype, pin_memory=True)
        torch.cat([image.flatten() for image in images], out=block)
        parts = block.to(device, non_blocking=True).split(counts)
        for i, image, part in zip(places, images, parts, strict=True):
            moved[i]["image"] = part.view(image.shape)
    return moved


def to_device(sample: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the sample, or the output, with its tensors on `device`."""
    return {
        # A copy to the CPU has to have ended when it is read.
        key: value.to(device, non_blocking=device.type != "cpu") if isinstance(value, Tensor) else value
        for key, value in sample.items()
    }


def sampled_topologies(model: nn.Module) -> list[Any]:
    """Return what the model says it sampled in its last step, [] for one that samples nothing."""
    return list(getattr(unwrap(model), "diagnostics", {}).get("topologies", []))
