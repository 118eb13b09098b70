"""Algorithm 4: topologies for all tasks from one forward and one backward pass per step (section 3.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.distribution import ArchDistribution
from d2go_fbnetv5.search.estimators import LossWindow, effective_sample_size, importance_weights
from d2go_fbnetv5.search.seeding import derive_generator

Sample = Mapping[str, Any]


def stack_images(batch: Sequence[Sample]) -> Tensor:
    """N samples' ``image`` of one size, C x H x W -> N x C x H x W floats."""
    return torch.stack([sample["image"] for sample in batch]).float()


class MultitaskSearch(nn.Module):
    """Trains a supernet and every task's distribution over topologies at once.

    In training, ``forward`` returns losses whose sum, run backward once, gives the gradients of lines 5 to 12
    of Algorithm 4: ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` is a
    surrogate whose gradient reaches that task's probabilities alone. Any trainer that sums a dict of losses
    can run it; under DDP, which averages gradients over ranks, the losses are scaled so that the average is
    the estimate over all ranks' samples.

    Args:
        supernet: has ``num_stages``, ``num_paths`` and ``forward(images, topology) -> {"path0": ...}``.
        tasks: of the ``Task`` contract, each with a name of its own.
        samples_per_rank: each batch is split into so many parts, each with a topology of its own. A part is a
            batch of its own for batch norm: give it 4 images or more, better 8.
        arch_warmup_iters: steps in which the probabilities rest.
        init_prob: start of all probabilities.
        loss_window: steps over which losses are normalised for REINFORCE; 0 takes them as they are.
        cost: adds to each loss the price of the sampled topology; seen by the probabilities only.
        importance_weighted: whether REINFORCE carries the importance weight. It must, since samples are of q
            and not of p_t; False is for ablation.
        self_normalize: Eq. 11 instead of Eq. 8, over all samples of all ranks.
        prob_min: probabilities stay in [prob_min, 1 - prob_min].
        seed: of the sampled topologies.
        preprocess: makes the supernet's input from a list of samples.

    Attributes:
        distribution: the ``ArchDistribution``, tasks in the order of ``tasks``.
        diagnostics: of the last training step, on the model's device and without gradients: per task
            ``task_loss/``, ``entropy/`` (bits a block), ``ess/`` (effective sample size) and
            ``expected_cost/`` (relative), and under "topologies" those sampled on this rank.
    """

    iteration_count: Tensor

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
    ) -> None:
        super().__init__()
        tasks = list(tasks)
        names = [task.name for task in tasks]
        if not tasks or len(set(names)) != len(names):
            raise ValueError(f"tasks: one or more with names of their own are needed, found {names}")
        if samples_per_rank < 1:
            raise ValueError(f"samples_per_rank is {samples_per_rank}, allowed is 1 or more")
        if cost is not None and tuple(cost.costs.shape) != (supernet.num_stages, supernet.num_paths):
            raise ValueError(
                f"cost is of {tuple(cost.costs.shape)} blocks, the supernet of "
                f"{(supernet.num_stages, supernet.num_paths)}"
            )
        self.supernet = supernet
        self.tasks = nn.ModuleDict(dict(zip(names, tasks, strict=True)))
        self.samples_per_rank = samples_per_rank
        self.arch_warmup_iters = arch_warmup_iters
        self.importance_weighted = importance_weighted
        self.self_normalize = self_normalize
        self.seed = seed
        self.preprocess = preprocess
        self.cost = cost
        self.distribution = ArchDistribution(
            len(tasks), supernet.num_stages, supernet.num_paths, init_prob, prob_min
        )
        self.window = LossWindow(len(tasks), loss_window)
        self.register_buffer("iteration_count", torch.zeros((), dtype=torch.long))
        self.iteration = 0  # the buffer's value without a device synchronisation
        self.diagnostics: dict[str, Any] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._read_iteration())

    def _read_iteration(self) -> None:
        self.iteration = int(self.iteration_count)

    def forward(self, batch: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Training: the dict of losses. Evaluation: per sample what each task's head says of its most likely
        topology's features.

        Args:
            batch: list of sample dicts. A sample without a task's label is passed over by that task.

        Raises:
            ValueError: fewer samples than ``samples_per_rank``.
        """
        if not self.training:
            return self._predict(batch)
        num_parts = self.samples_per_rank
        if len(batch) < num_parts:
            raise ValueError(
                f"a batch of {len(batch)} samples cannot be split into samples_per_rank = {num_parts} parts"
            )
        rank, world_size = _rank_and_world_size()
        generator = derive_generator("topologies", self.seed, rank, self.iteration)
        masks = self.distribution.sample_proxy(num_parts, generator)
        topologies = [Topology(mask) for mask in masks]
        bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
        losses = [
            self._task_losses(batch[start:end], topology)
            for topology, start, end in zip(topologies, bounds[:-1], bounds[1:], strict=True)
        ]
        return self._combine(losses, masks, topologies, rank, world_size)

    def _task_losses(self, part: Sequence[Sample], topology: Topology) -> dict[str, Tensor]:
        """Each task's loss of one part under one topology (lines 4 and 7); none for a task without labels."""
        features = self._features(part, topology)
        losses = {}
        for name, task in self.tasks.items():
            parts = task({key: features[key] for key in task.in_features}, part)
            if parts:
                losses[name] = torch.stack([_at_least_float(value) for value in parts.values()]).sum()
        return losses

    def _features(self, samples: Sequence[Sample], topology: Topology) -> dict[str, Tensor]:
        run = self.supernet if callable(self.supernet) else self.supernet.forward
        return run(self.preprocess(samples), topology)

    def _combine(
        self,
        losses: list[dict[str, Tensor]],
        masks: Tensor,
        topologies: list[Topology],
        rank: int,
        world_size: int,
    ) -> dict[str, Tensor]:
        """Importance weights, REINFORCE and their scaling over ranks (lines 6, 7 and 11)."""
        device = self.distribution.probs.device
        num_parts = len(losses)
        # Zero gradients where there is nothing to learn, so that backward always has something to run on.
        zero = self.distribution.probs.sum() * 0.0
        values = [[part.get(name, zero) for part in losses] for name in self.tasks]
        valid = torch.tensor([[name in part for part in losses] for name in self.tasks], device=device)
        masks = masks.to(device)
        log_prob = self.distribution.log_prob(masks)

        with torch.no_grad():
            detached = torch.stack([torch.stack([v.detach() for v in row]) for row in values]).to(device)
            priced = detached if self.cost is None else detached + self.cost(masks)
            ratios = (log_prob - self.distribution.log_proxy(log_prob)).exp()
            # One collective a step. All ranks' samples side by side: T x (ranks * parts).
            ratios, detached, priced, seen = _gather(
                torch.stack([ratios, detached, priced, valid.to(ratios.dtype)])
            )
            seen = seen > 0.5
            weights = importance_weights(ratios, seen, self.self_normalize)
            normalized = self.window.normalize(priced, seen, self.iteration)
            arch_weights = (
                weights
                if self.importance_weighted
                else importance_weights(torch.ones_like(ratios), seen, self_normalize=True)
            )
            scores = torch.where(seen, arch_weights * normalized, 0.0) * world_size
            mine = slice(rank * num_parts, (rank + 1) * num_parts)
            self._diagnose(weights, detached, seen, topologies)

        output = {}
        arch_is_on = self.iteration >= self.arch_warmup_iters
        for t, name in enumerate(self.tasks):
            scaled = weights[t, mine] * world_size
            terms = [w * value for w, value, has in zip(scaled, values[t], valid[t], strict=True) if has]
            output[f"loss_{name}"] = torch.stack(terms).sum() if terms else zero
            output[f"loss_arch_{name}"] = (scores[t, mine] * log_prob[t]).sum() if arch_is_on else zero
        self.iteration += 1
        self.iteration_count.fill_(self.iteration)
        return output

    def _diagnose(self, weights: Tensor, losses: Tensor, seen: Tensor, topologies: list[Topology]) -> None:
        entropy = self.distribution.entropy()
        ess = effective_sample_size(weights)
        mean_loss = torch.where(seen, losses, 0.0).sum(dim=1) / seen.sum(dim=1).clamp_min(1)
        self.diagnostics = {"topologies": topologies}
        for t, name in enumerate(self.tasks):
            self.diagnostics[f"task_loss/{name}"] = mean_loss[t]
            self.diagnostics[f"entropy/{name}"] = entropy[t]
            self.diagnostics[f"ess/{name}"] = ess[t]
        if self.cost is not None:
            expected = self.cost.relative(self.distribution.probs.detach())
            for t, name in enumerate(self.tasks):
                self.diagnostics[f"expected_cost/{name}"] = expected[t]

    def _predict(self, batch: Sequence[Sample]) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = [{} for _ in batch]
        cache: dict[Topology, dict[str, Tensor]] = {}
        for name, topology in self.most_likely().items():
            if topology not in cache:
                cache[topology] = self._features(batch, topology)
            task = self.tasks[name]
            features = {key: cache[topology][key] for key in task.in_features}
            for merged, output in zip(outputs, task(features, batch), strict=True):
                merged.update(output)
        return outputs

    def most_likely(self) -> dict[str, Topology]:
        """Per task the topology of all blocks with a probability over 0.5 (section 4.1), not pruned."""
        return dict(zip(self.tasks, self.distribution.most_likely(), strict=True))

    def param_groups(
        self,
        lr: float,
        arch_lr_factor: float = 0.01,
        weight_decay: float = 0.0,
        weight_decay_norm: float | None = None,
    ) -> list[dict[str, Any]]:
        """Groups for ``torch.optim.SGD``: weights, norms' parameters, and the probabilities, which have the
        rate ``lr * arch_lr_factor`` (Appendix F.1), no momentum and no weight decay.

        Args:
            weight_decay_norm: of normalisation layers; None for ``weight_decay``.
        """
        norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        norm_ids = {id(p) for m in self.modules() if isinstance(m, norms) for p in m.parameters()}
        rest = [p for n, p in self.named_parameters() if n != "distribution.probs" and p.requires_grad]
        groups = [
            ("weights", [p for p in rest if id(p) not in norm_ids], weight_decay),
            (
                "norms",
                [p for p in rest if id(p) in norm_ids],
                weight_decay if weight_decay_norm is None else weight_decay_norm,
            ),
        ]
        arch = {
            "name": "arch",
            "params": [self.distribution.probs],
            "lr": lr * arch_lr_factor,
            "weight_decay": 0.0,
            "momentum": 0.0,
            "nesterov": False,
        }
        weights = [
            {"name": name, "params": params, "lr": lr, "weight_decay": decay}
            for name, params, decay in groups
            if params
        ]
        return [*weights, arch]

    def after_step(self) -> None:
        """To be called after each optimizer step: projects the probabilities into their range."""
        self.distribution.project()


def _at_least_float(value: Tensor) -> Tensor:
    """Losses of half precision are weighted and summed in single precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gather(values: Tensor) -> tuple[Tensor, ...]:
    """All ranks' K x T x N side by side in the last dimension, in the order of ranks, as K tensors."""
    _, world_size = _rank_and_world_size()
    if world_size > 1:
        parts = [torch.empty_like(values) for _ in range(world_size)]
        dist.all_gather(parts, values.contiguous())
        values = torch.cat(parts, dim=-1)
    return tuple(values.unbind(0))
