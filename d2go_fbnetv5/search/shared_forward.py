"""Algorithm 3: all tasks share one forward pass, each has a backward pass of its own (section 3.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import STRAIGHT_THROUGH, Losses, Search
from d2go_fbnetv5.search.distribution import relax
from d2go_fbnetv5.search.parts import Sample


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

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        sampled = self.distribution.sample_proxy(len(parts), generator)
        self.diagnostics = {"topologies": [Topology(mask) for mask in sampled]}
        probs = self.distribution.probs
        shared = sampled.to(probs.device)
        hard = shared.expand(len(self.tasks), *shared.shape)
        # While the probabilities rest, no task needs a backward pass of its own.
        masks = relax(hard, probs[:, None]) if self.arch_is_on else hard
        losses: list[Losses] = [{} for _ in parts]
        for i, part in enumerate(parts):
            if self.arch_is_on:
                features = self._features_per_task(part, masks[:, i])
            else:
                features = dict.fromkeys(self.tasks, self._features(part, Topology(sampled[i])))
            for name in self.tasks:
                losses[i].update(self._task_loss(name, features[name], part))
        log_prob = self.distribution.log_prob(shared).detach()
        ratios = (log_prob - self.distribution.log_proxy(log_prob)).exp()
        estimate = self._estimate(losses, ratios, self.self_normalize)
        return self._straight_through(losses, hard, masks, estimate)

    def _features_per_task(self, part: Sequence[Sample], masks: Tensor) -> dict[str, dict[str, Tensor]]:
        """One forward pass; each task's features as leaves of a backward pass of its own.

        Args:
            masks: T x S x P, equal in value, different in where their gradients go.
        """
        supernet = self.supernet
        # Supernets that are no modules have nothing to train.
        weights = supernet.parameters() if isinstance(supernet, nn.Module) else ()
        wanted = [tuple(task.in_features) for task in self.tasks.values()]
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
