"""Algorithm 3: all tasks share one forward pass, each has a backward pass of its own (section 3.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.search.base import STRAIGHT_THROUGH, Batch, Losses, Search
from d2go_fbnetv5.search.distribution import relax
from d2go_fbnetv5.search.estimators import importance_weights
from d2go_fbnetv5.search.losses import StepLosses


class SharedForwardSearch(Search):
    """Algorithm 3: topologies are sampled from q and run once; the gradient of each task's loss is carried back
    through the supernet alone, since d loss_t / d a is what that task's probabilities learn from.

    Every block runs in every pass (straight-through estimation).

    Args:
        supernet, tasks, **options: as `Search` has them.
        self_normalize: Eq. 11 instead of Eq. 8, over all samples of all ranks.
    """

    estimators = (STRAIGHT_THROUGH,)
    options = ("self_normalize",)

    def __init__(
        self, supernet: Any, tasks: Iterable[nn.Module], *, self_normalize: bool = True, **options: Any
    ) -> None:
        super().__init__(supernet, tasks, **options)
        self.self_normalize = self_normalize

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        drawn = self.distribution.draw_proxy(len(parts), generator)
        if self.arch_is_on:
            hard = drawn.masks.expand(len(self.tasks), *drawn.masks.shape)
            relaxed = relax(hard, self.distribution.probs[:, None])
            columns = []
            for i, part in enumerate(parts):
                features = self._features_per_task(part, relaxed[:, i])
                columns.append([self.task_loss(name, features[name], part) for name in self.tasks])
            losses = StepLosses.of(list(zip(*columns, strict=True)), self.zero())
        else:  # no task needs a backward pass of its own
            relaxed, losses = None, self.run(parts, drawn.topologies)
        pool = losses.pooled(drawn.ratios)
        weights = importance_weights(pool.ratios, pool.valid, self.self_normalize)
        self.normalized(pool.losses, pool)
        surrogates = self.straight_through(drawn, relaxed, pool.mine(weights))
        output = self.named(losses, pool.mine(weights), surrogates)
        return output, self.diagnose(drawn.topologies, pool, weights)

    def _features_per_task(self, part: Batch, masks: Tensor) -> dict[str, dict[str, Tensor]]:
        """One forward pass; each task's features as leaves of a backward pass of its own.

        Args:
            masks: T x S x P, equal in value, different in where their gradients go.
        """
        supernet = self.supernet
        # Supernets that are no modules have nothing to train.
        weights = supernet.parameters() if isinstance(supernet, nn.Module) else ()
        wanted = list(self.in_features.values())
        run = partial(supernet.forward_soft, self.preprocess(part))
        outputs = iter(_SharedForward.apply(run, wanted, masks, *(w for w in weights if w.requires_grad)))
        return {
            name: {key: next(outputs) for key in keys} for name, keys in zip(self.tasks, wanted, strict=True)
        }


class _SharedForward(torch.autograd.Function):
    """The supernet run once, with a backward pass for each task.

    Autograd would add up the tasks' gradients at the features and carry the sum back, from which d loss_t / d a can't
    be told apart. The weights are inputs, so that their gradients, summed over tasks, go the usual way (and DDP's).
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor], Mapping[str, Tensor]],
        wanted: Sequence[Sequence[str]],
        masks: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.wanted, ctx.weights = wanted, weights
        ctx.mask = masks[0].detach().clone().requires_grad_()
        with torch.enable_grad():
            ctx.features = run(ctx.mask)
        return tuple(ctx.features[key].detach() for keys in wanted for key in keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        features, mask, inputs = ctx.features, ctx.mask, (ctx.mask, *ctx.weights)
        del ctx.features  # so that the graph ends with this call
        of_masks = [torch.zeros_like(mask) for _ in ctx.wanted]
        of_weights: list[Tensor | None] = [None] * len(ctx.weights)
        given = iter(gradients)
        for t, keys in enumerate(ctx.wanted):
            pairs = [(features[key], g) for key, g in zip(keys, given, strict=False) if g is not None]
            if not pairs:
                continue  # no sample has the task's label
            outputs, incoming = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, inputs, incoming, retain_graph=True, allow_unused=True)
            of_masks[t] = found[0] if found[0] is not None else of_masks[t]
            of_weights = [
                new if total is None else total if new is None else total + new
                for total, new in zip(of_weights, found[1:], strict=True)
            ]
        return None, None, torch.stack(of_masks), *of_weights
