"""Tasks that are added to a finished search (the paper's second limit, section 6)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.algorithms import MultitaskSearch
from d2go_fbnetv5.search.base import Batch, Losses
from d2go_fbnetv5.search.distribution import Drawn
from d2go_fbnetv5.search.estimators import importance_weights
from d2go_fbnetv5.search.losses import StepLosses
from d2go_fbnetv5.utils.errors import InputError

JUDGED_STEPS = (
    32  # at the end of the warm-up, in which the earlier tasks' topologies are tried under the new heads
)
SHRINKAGE = 0.5  # of what the earlier tasks' mixture says beyond the first probability


class AdditionSearch(MultitaskSearch):
    """Algorithm 4 for tasks that are added to a finished search, of which nothing changes.

    Until the probabilities learn, the new heads do, on the supernet as it is: half of the topologies are of the mean of
    the earlier tasks' distributions, half have the first probability for each block. Then each new task's probabilities
    start from the earlier ones' mixture, shrunk by half towards the first probability, in which an earlier task counts
    by the loss that its most likely topology has under the new head (softmax of minus the losses, in units of their
    deviation). From there on they learn alone: a step has no backward pass through the supernet or a head.

    The supernet, the earlier heads, their batch-norm statistics and the earlier probabilities stay what they are to the
    last bit. (Weights shared with a later task: Supernet Transfer, arXiv 2407.20279.) In `AdaptingSearch` the weights
    follow.

    Args:
        supernet, tasks, **options: as `MultitaskSearch` has them; the earlier tasks come first.
        num_earlier: how many these are, 1 or more.
        arch_warmup_iters: how long the new heads are trained, 1 or more.

    Attributes:
        mode_losses: T x the number of earlier tasks, sums of the new heads' losses under their most likely topologies.
    """

    mode_losses: Tensor

    def __init__(
        self,
        supernet: nn.Module,
        tasks: Iterable[nn.Module],
        *,
        num_earlier: int,
        arch_warmup_iters: int,
        **options: Any,
    ) -> None:
        super().__init__(
            supernet, tasks, num_earlier=num_earlier, arch_warmup_iters=arch_warmup_iters, **options
        )
        if not 0 < num_earlier < len(self.tasks):
            raise InputError(
                f"num_earlier is {num_earlier}, allowed: 1 or more, and fewer than the tasks {list(self.tasks)}"
            )
        if arch_warmup_iters < 1:
            raise InputError(
                f"arch_warmup_iters is {arch_warmup_iters}, allowed: 1 or more, as heads are new"
            )
        self._norms: list[nn.modules.batchnorm._BatchNorm] = []
        for part in self._resting():
            part.requires_grad_(False)
            kind = nn.modules.batchnorm._BatchNorm
            self._norms += [module for module in part.modules() if isinstance(module, kind)]
        shape = len(self.learning), num_earlier
        self.register_buffer("mode_losses", torch.zeros(shape, dtype=torch.float64))

    @property
    def earlier(self) -> tuple[str, ...]:
        """Return the names of the tasks that were found earlier."""
        return tuple(self.tasks)[: self.distribution.num_resting]

    def _resting(self) -> list[nn.Module]:
        """Return the modules that stay as they are."""
        return [self.supernet, *(self.tasks[name] for name in self.earlier)]

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        with self._statistics_at_rest():
            found = self._losses(parts, generator)
            if not self.arch_is_on and self.iteration >= self.arch_warmup_iters - JUDGED_STEPS:
                self._try_modes([sample for part in parts for sample in part])
            return found

    def _losses(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        return super().step(parts, generator)

    def draw(self, num_samples: int, generator: torch.Generator) -> Drawn:
        if self.arch_is_on:
            return super().draw(num_samples, generator)
        return self.distribution.draw_around_resting(num_samples, generator)

    def run(self, parts: list[Batch], topologies: Sequence[Topology]) -> StepLosses:
        """Run the supernet for the new tasks, without the blocks that none of their heads can see."""
        read = {feature for name in self.learning for feature in self.in_features[name]}
        pruned = [topology.prune(read) for topology in topologies]
        if not self.arch_is_on:
            return super().run(parts, pruned)
        with torch.no_grad():  # the heads have learnt
            return super().run(parts, pruned)

    def after_step(self) -> None:
        """Project the probabilities, and start them after the last step of the warm-up."""
        super().after_step()
        if self.iteration == self.arch_warmup_iters:
            self._start()

    @torch.no_grad()
    def _try_modes(self, batch: Batch) -> None:
        modes = self.distribution.most_likely()[: self.mode_losses.shape[1]]
        found = self.run([batch] * len(modes), modes)
        pool = found.pooled(torch.ones_like(found.values))
        losses = torch.where(pool.valid, pool.losses, 0.0).double()
        self.mode_losses += losses.unflatten(1, (-1, len(modes))).sum(dim=1)

    @torch.no_grad()
    def _start(self) -> None:
        losses = self.mode_losses - self.mode_losses.mean(dim=1, keepdim=True)
        deviation = losses.square().mean(dim=1, keepdim=True).sqrt()
        shares = (-losses / deviation.clamp_min(torch.finfo(losses.dtype).tiny)).softmax(dim=1)
        distribution = self.distribution
        found = distribution.probs[: distribution.num_resting].double()
        mixture = torch.einsum("te,esp->tsp", shares, found)
        for group in self.groups:
            places = [self.learning.index(name) for name in group]
            mixture[places] = mixture[places].mean(dim=0)
        first = distribution.init_prob
        distribution.probs[distribution.num_resting :] = first + SHRINKAGE * (mixture - first).float()
        distribution.project()

    @contextlib.contextmanager
    def _statistics_at_rest(self) -> Iterator[None]:
        """Inside, what rests normalises by its batch, as in a search, and keeps the statistics that it has."""
        before = [norm.track_running_stats for norm in self._norms]
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm, tracked in zip(self._norms, before, strict=True):
                norm.track_running_stats = tracked


class AdaptingSearch(AdditionSearch):
    """`AdditionSearch` in which the supernet and all heads learn from first to last, the earlier tasks' losses beside.

    Topologies are drawn for the earlier tasks, too, whose losses count by Eq. 11 as in any step of Algorithm 4: most
    where a topology is likely under the task's own distribution. After the warm-up a step is one of a search for all
    tasks, but that the earlier probabilities do not learn.

    Args:
        supernet, tasks, **options: as `AdditionSearch` has them.
    """

    @property
    def kept(self) -> tuple[str, ...]:
        """Return what the names of the supernet's and the earlier heads' weights begin with."""
        return "supernet.", *(f"tasks.{name}." for name in self.earlier)

    def _resting(self) -> list[nn.Module]:
        return []

    def draw(self, num_samples: int, generator: torch.Generator) -> Drawn:
        if self.arch_is_on:
            return self.distribution.draw_proxy_of_all(num_samples, generator)
        return super().draw(num_samples, generator)

    def _losses(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        drawn = self.draw(len(parts), generator)
        features = self.features_of(parts, drawn.topologies)
        output, diagnostics = self.learn(drawn, self.losses_of(self.learning, parts, features))
        earlier = self.losses_of(self.earlier, parts, features)
        pool = earlier.pooled(cast(Tensor, drawn.resting_ratios))
        weights = importance_weights(pool.ratios, pool.valid, self.self_normalize)
        sums = (pool.mine(weights) * earlier.values).sum(dim=1)
        losses = {f"loss_{name}": value for name, value in zip(self.earlier, sums, strict=True)}
        return losses | output, diagnostics
