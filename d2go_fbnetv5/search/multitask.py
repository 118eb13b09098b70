"""Algorithm 4: topologies for all tasks from one forward and one backward pass per step (section 3.3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from d2go_fbnetv5.search.base import REINFORCE, Losses, Search
from d2go_fbnetv5.search.parts import Sample


class MultitaskSearch(Search):
    """Algorithm 4: all tasks share the topologies that a step samples, and its only backward pass.

    ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` is a surrogate whose gradient
    reaches that task's probabilities alone (lines 5 to 12).

    Args:
        supernet, tasks, **options: as `Search` has them.
        importance_weighted: whether REINFORCE carries the importance weight. It must, since samples are of q
            and not of p_t; False is for ablation.
        self_normalize: Eq. 11 instead of Eq. 8, over all samples of all ranks.
    """

    estimators = (REINFORCE,)
    options = ("importance_weighted", "self_normalize")

    def __init__(
        self,
        supernet: Any,
        tasks: Iterable[nn.Module],
        *,
        importance_weighted: bool = True,
        self_normalize: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(supernet, tasks, **options)
        self.importance_weighted = importance_weighted
        self.self_normalize = self_normalize

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        masks, losses = self._sample_losses(parts, generator)
        masks = masks.to(self.distribution.probs.device)
        log_prob = self.distribution.log_prob(masks)
        ratios = (log_prob - self.distribution.log_proxy(log_prob)).exp().detach()
        estimate = self._estimate(
            losses, ratios, self.self_normalize, self.importance_weighted, reinforced=True
        )
        return self._reinforced(losses, log_prob, estimate)
