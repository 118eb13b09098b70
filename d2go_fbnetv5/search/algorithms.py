"""The paper's Algorithms 1, 2 and 4, random search, and all of them by name (sections 3.3 and 4.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import REINFORCE, STRAIGHT_THROUGH, Batch, Losses, Search
from d2go_fbnetv5.search.distribution import Drawn, relax
from d2go_fbnetv5.search.estimators import importance_weights
from d2go_fbnetv5.search.losses import StepLosses
from d2go_fbnetv5.search.shared_forward import SharedForwardSearch
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.registry import Registry
from d2go_fbnetv5.utils.seeding import derive_generator


class MultitaskSearch(Search):
    """Algorithm 4: all tasks share the topologies that a step samples, and its only backward pass (section 3.3.4).

    ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` is a surrogate whose gradient
    reaches that task's probabilities alone (lines 5 to 12).

    Args:
        supernet: as `Search` has it, like the rest.
        tasks: those that are searched for.
        importance_weighted: whether REINFORCE carries the importance weight. It must, since samples are of q
            and not of p_t; False is for ablation.
        self_normalize: Eq. 11 instead of Eq. 8, over all samples of all ranks.
        groups: as `Search` has them; the other algorithms know none.
        warmup_densities: while the probabilities rest, topologies of all densities are sampled, see
            `ArchDistribution.draw_densities`, and not those of the probabilities.
    """

    estimators = (REINFORCE,)
    options = ("groups", "importance_weighted", "self_normalize", "warmup_densities")

    def __init__(
        self,
        supernet: Any,
        tasks: Iterable[nn.Module],
        *,
        importance_weighted: bool = True,
        self_normalize: bool = True,
        warmup_densities: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(supernet, tasks, **options)
        self.importance_weighted = importance_weighted
        self.self_normalize = self_normalize
        self.warmup_densities = warmup_densities

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        drawn = self.draw(len(parts), generator)
        return self.learn(drawn, self.run(parts, drawn.topologies))

    def learn(self, drawn: Drawn, losses: StepLosses) -> tuple[Losses, dict[str, Any]]:
        """Return what a step returns, of the losses that its samples have."""
        pool = losses.pooled(drawn.ratios)
        weights = importance_weights(pool.ratios, pool.valid, self.self_normalize)
        shares = weights if self.importance_weighted else _equal(pool.valid, weights)
        surrogates = self.reinforce(drawn.log_prob, pool.mine(shares * self.compared(pool)))
        output = self.named(losses, pool.mine(weights), surrogates)
        return output, self.diagnose(drawn.topologies, pool, weights)

    def draw(self, num_samples: int, generator: torch.Generator) -> Drawn:
        """Draw the topologies of a step on this rank, which all tasks share."""
        if self.warmup_densities and not self.arch_is_on:
            return self.distribution.draw_densities(num_samples, generator)
        return self.distribution.draw_proxy(num_samples, generator)


class PerTaskSearch(Search):
    """Algorithm 2: each task samples topologies of its own, and has forward and backward passes of its own (3.3.2).

    The graphs of all tasks are run by one ``backward()``.

    Args:
        supernet, tasks, **options: as `Search` has them.
        estimator: "straight_through", for which every block runs in every pass, or "reinforce".
    """

    estimators = (STRAIGHT_THROUGH, REINFORCE)
    options = ("estimator",)

    def __init__(
        self, supernet: Any, tasks: Iterable[nn.Module], *, estimator: str = STRAIGHT_THROUGH, **options: Any
    ) -> None:
        super().__init__(supernet, tasks, **options)
        if estimator not in self.estimators:
            raise InputError(f"estimator is {estimator!r}, allowed: {', '.join(self.estimators)}")
        self.estimator = estimator

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        drawn = self.distribution.draw_own(len(parts), generator)
        relaxed = None
        if self.estimator == STRAIGHT_THROUGH and self.arch_is_on:
            relaxed = relax(drawn.masks, self.distribution.probs[:, None])
        rows = []
        for t, name in enumerate(self.tasks):
            topologies = drawn.topologies[t * len(parts) : (t + 1) * len(parts)]
            if relaxed is None:
                features = map(self.features, parts, topologies)
            else:
                features = map(self.features_soft, parts, relaxed[t])
            rows.append(
                [self.task_loss(name, found, part) for found, part in zip(features, parts, strict=True)]
            )
        losses = StepLosses.of(rows, self.zero())
        pool = losses.pooled(drawn.ratios)
        weights = importance_weights(pool.ratios, pool.valid, self_normalize=False)
        if self.estimator == REINFORCE:
            surrogates = self.reinforce(drawn.log_prob, pool.mine(weights * self.compared(pool)))
        else:
            self.normalized(pool.losses, pool)
            surrogates = self.straight_through(drawn, relaxed, pool.mine(weights))
        output = self.named(losses, pool.mine(weights), surrogates)
        return output, self.diagnose(drawn.topologies, pool, weights)


class SingleTaskSearch(PerTaskSearch):
    """Algorithm 1: Algorithm 2 for one task, with a supernet of its own (section 3.3.1)."""

    def __init__(self, supernet: Any, tasks: Iterable[nn.Module], **options: Any) -> None:
        super().__init__(supernet, tasks, **options)
        if len(self.tasks) != 1:
            raise InputError(f"tasks: Algorithm 1 searches for one task, found {list(self.tasks)}")


class RandomSearch(Search):
    """Random search, which the others are compared with (section 4.3, Table 5).

    The weights are trained on topologies sampled with the first probabilities, which never learn; what it finds for a
    task is one such topology, drawn by the seed.
    """

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        drawn = self.distribution.draw_proxy(len(parts), generator)
        losses = self.run(parts, drawn.topologies)
        pool = losses.pooled(torch.ones_like(drawn.ratios))
        weights = importance_weights(pool.ratios, pool.valid, self_normalize=False)
        output = self.named(losses, pool.mine(weights), self.zero().expand(len(self.tasks)))
        return output, self.diagnose(drawn.topologies, pool, weights)

    def most_likely(self) -> dict[str, Topology]:
        """Return per task a random topology, always the same."""
        probs = self.distribution.probs.detach().cpu()
        return {
            name: Topology(
                torch.rand(p.shape, generator=derive_generator("random search", self.seed, name)) < p
            )
            for name, p in zip(self.tasks, probs, strict=True)
        }


def _equal(valid: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Weights T x M that are the same for all samples with a loss."""
    return importance_weights(torch.ones_like(like), valid, self_normalize=True)


ALGORITHMS: Registry[type[Search]] = Registry("search algorithm")
ALGORITHMS.add("multitask", MultitaskSearch)
ALGORITHMS.add("single_task", SingleTaskSearch)
ALGORITHMS.add("per_task_forward", PerTaskSearch)
ALGORITHMS.add("shared_forward", SharedForwardSearch)
ALGORITHMS.add("random", RandomSearch)
