"""Algorithm 4: topologies for all tasks from one forward and one backward pass per step (section 3.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import REINFORCE, Losses, Sample, Search, stack_images
from d2go_fbnetv5.search.cost import CostRegularizer


class MultitaskSearch(Search):
    """Algorithm 4: all tasks share the topologies that a step samples, and its only backward pass.

    ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` is a surrogate whose gradient
    reaches that task's probabilities alone (lines 5 to 12).

    Args:
        supernet, tasks, samples_per_rank, arch_warmup_iters, init_prob, loss_window, cost, prob_min, seed,
            preprocess, shared_images: as `Search` has them.
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
        samples_per_rank: int = 4,
        arch_warmup_iters: int = 0,
        init_prob: float = 0.5,
        loss_window: int = 200,
        cost: CostRegularizer | None = None,
        importance_weighted: bool = True,
        self_normalize: bool = True,
        prob_min: float = 0.02,
        seed: int = 0,
        preprocess: Callable[[Sequence[Sample]], Tensor] = stack_images,
        shared_images: bool = False,
    ) -> None:
        super().__init__(
            supernet,
            tasks,
            samples_per_rank,
            arch_warmup_iters,
            init_prob,
            loss_window,
            cost,
            prob_min,
            seed,
            preprocess,
            shared_images,
        )
        self.importance_weighted = importance_weighted
        self.self_normalize = self_normalize

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        masks = self.distribution.sample_proxy(len(parts), generator)
        topologies = [Topology(mask) for mask in masks]
        self.diagnostics = {"topologies": topologies}
        losses = [self._task_losses(part, topology) for part, topology in zip(parts, topologies, strict=True)]
        masks = masks.to(self.distribution.probs.device)
        log_prob = self.distribution.log_prob(masks)
        ratios = (log_prob - self.distribution.log_proxy(log_prob)).exp().detach()
        estimate = self._estimate(
            losses, ratios, self.self_normalize, self.importance_weighted, reinforced=True
        )
        return self._reinforced(losses, log_prob, estimate)
