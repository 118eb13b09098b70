"""Algorithms 1 and 2: each task samples topologies of its own, at the cost of passes of its own (3.3.1, 3.3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import REINFORCE, STRAIGHT_THROUGH, Losses, Search
from d2go_fbnetv5.search.distribution import relax
from d2go_fbnetv5.search.parts import Sample
from d2go_fbnetv5.utils.errors import InputError


class PerTaskSearch(Search):
    """Algorithm 2: a forward and a backward pass for each task. The graphs of all tasks are run by one ``backward()``.

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

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        sampled = self.distribution.sample(len(parts), generator)
        self.diagnostics = {"topologies": [Topology(mask) for row in sampled for mask in row]}
        hard = sampled.to(self.distribution.probs.device)
        soft = self.estimator == STRAIGHT_THROUGH and self.arch_is_on
        masks = relax(hard, self.distribution.probs[:, None]) if soft else hard
        losses: list[Losses] = [{} for _ in parts]
        for t, name in enumerate(self.tasks):
            for i, part in enumerate(parts):
                if soft:
                    features = self.supernet.forward_soft(self.preprocess(part), masks[t, i])
                else:
                    features = self._features(part, Topology(sampled[t, i]))
                losses[i].update(self._task_loss(name, features, part))
        reinforced = self.estimator == REINFORCE
        ratios = torch.ones(hard.shape[:2], device=hard.device)
        estimate = self._estimate(losses, ratios, reinforced=reinforced)
        if reinforced:
            return self._reinforced(losses, self.distribution.log_prob(hard), estimate)
        return self._straight_through(losses, hard, masks, estimate)


class SingleTaskSearch(PerTaskSearch):
    """Algorithm 1: Algorithm 2 for one task, with a supernet of its own."""

    def __init__(self, supernet: Any, tasks: Iterable[nn.Module], **options: Any) -> None:
        super().__init__(supernet, tasks, **options)
        if len(self.tasks) != 1:
            raise InputError(f"tasks: Algorithm 1 searches for one task, found {list(self.tasks)}")
