"""What the search algorithms share: tasks, distributions, the parts of a batch, statistics over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.diagnostics import diagnose
from d2go_fbnetv5.search.distribution import ArchDistribution, relax
from d2go_fbnetv5.search.estimators import LossWindow, compare, importance_weights
from d2go_fbnetv5.search.groups import param_groups
from d2go_fbnetv5.search.parts import Sample, split, stack_images
from d2go_fbnetv5.search.ranks import gather, rank_and_world_size
from d2go_fbnetv5.search.seeding import derive_generator
from d2go_fbnetv5.utils.errors import InputError

Losses = dict[str, Tensor]

STRAIGHT_THROUGH, REINFORCE = "straight_through", "reinforce"


@dataclass(frozen=True)
class Estimate:
    """What the losses of a step say, over all samples of all ranks.

    Attributes:
        weights: T x N of this rank's samples: what each counts in the expectation of its task's loss, times the
            number of ranks, as trainers average gradients over ranks.
        scores: T x N of this rank's samples: the normalised loss with price, weighted (what REINFORCE scores by).
        scale: T, the standard deviation by which losses are normalised.
    """

    weights: Tensor
    scores: Tensor
    scale: Tensor


class Search(nn.Module):
    """Trains a supernet and every task's distribution over topologies at once.

    In training, ``forward`` returns losses whose sum, run backward once, gives the gradients of a whole iteration:
    ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` the probabilities alone (by
    straight-through estimation, ``loss_<task>`` does so too). Any trainer that sums a dict of losses can run it;
    under DDP, which averages gradients over ranks, the losses are scaled so that the average is the estimate over
    all ranks' samples.

    Args:
        supernet: has ``num_stages``, ``num_paths`` and ``forward(images, topology) -> {"path0": ...}``; for
            straight-through estimation also ``forward_soft(images, mask)``.
        tasks: of the ``Task`` contract, each with a name of its own.
        samples_per_rank: each batch is split into so many parts, each with a topology of its own. A part is a
            batch of its own for batch norm: give it 4 images or more, better 8.
        arch_warmup_iters: steps in which the probabilities rest.
        arch_decay_iters: of the steps after those, over so many the gradients of the probabilities fall linearly to
            zero, as a rate that decays would have it; 0 leaves them as they are. Where a step's few samples say
            little, the last ones would otherwise decide what is found.
        init_prob: start of all probabilities.
        loss_window: steps over which losses are normalised for the probabilities; 0 takes them as they are.
        cost: adds to each loss the price of the sampled topology; seen by the probabilities only.
        prob_min: probabilities stay in [prob_min, 1 - prob_min].
        seed: of the sampled topologies.
        shared_images: once the probabilities learn, each part is the whole batch, so that a step tries its
            topologies on the same images, at ``samples_per_rank`` times the cost. REINFORCE compares a loss with
            the mean of the others, which leaves its expectation as it is and takes out how hard the images are:
            most of the variance.
        preprocess: makes the supernet's input from a list of samples.

    Attributes:
        estimators: how the gradient of the probabilities can be estimated, the usual way first; empty where they
            do not learn.
        options: the names of further arguments of the constructor.
        distribution: the ``ArchDistribution``, tasks in the order of ``tasks``.
        diagnostics: of the last training step, on the model's device and without gradients: per task
            ``task_loss/``, ``entropy/`` (bits a block), ``ess/`` (effective sample size) and
            ``expected_cost/`` (relative), and under "topologies" those sampled on this rank.
    """

    estimators: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    iteration_count: Tensor

    def __init__(
        self,
        supernet: Any,
        tasks: Iterable[nn.Module],
        samples_per_rank: int = 4,
        arch_warmup_iters: int = 0,
        arch_decay_iters: int = 0,
        init_prob: float = 0.5,
        loss_window: int = 200,
        cost: CostRegularizer | None = None,
        prob_min: float = 0.02,
        seed: int = 0,
        preprocess: Callable[[Sequence[Sample]], Tensor] = stack_images,
        shared_images: bool = False,
    ) -> None:
        super().__init__()
        tasks = list(tasks)
        names = [task.name for task in tasks]
        if not tasks or len(set(names)) != len(names):
            raise InputError(f"tasks: one or more with names of their own are needed, found {names}")
        if samples_per_rank < 1:
            raise InputError(f"samples_per_rank is {samples_per_rank}, allowed is 1 or more")
        if shared_images and samples_per_rank < 2:
            raise InputError(
                f"samples_per_rank is {samples_per_rank}, allowed with shared_images is 2 or more: a topology is "
                "compared with the others of its step"
            )
        if cost is not None and tuple(cost.costs.shape) != (supernet.num_stages, supernet.num_paths):
            raise InputError(
                f"cost is of {tuple(cost.costs.shape)} blocks, the supernet of "
                f"{(supernet.num_stages, supernet.num_paths)}"
            )
        self.supernet = supernet
        self.tasks = nn.ModuleDict(dict(zip(names, tasks, strict=True)))
        self.samples_per_rank = samples_per_rank
        self.arch_warmup_iters = arch_warmup_iters
        self.arch_decay_iters = arch_decay_iters
        self.seed = seed
        self.shared_images = shared_images
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

    def forward(self, batch: Sequence[Sample]) -> Losses | list[dict[str, Any]]:
        """Training: the dict of losses. Evaluation: per sample what each task's head says of its most likely
        topology's features.

        Args:
            batch: list of sample dicts. A sample without a task's label is passed over by that task.

        Raises:
            ValueError: fewer samples than ``samples_per_rank``.
        """
        if not self.training:
            return self._predict(batch)
        generator = derive_generator("topologies", self.seed, rank_and_world_size()[0], self.iteration)
        output = self._step(self._parts(batch), generator)
        self.iteration += 1
        self.iteration_count.fill_(self.iteration)
        return output

    def _parts(self, batch: Sequence[Sample]) -> list[Sequence[Sample]]:
        if self.shared_images and self.arch_is_on:
            return [batch] * self.samples_per_rank
        return split(batch, self.samples_per_rank)

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        """The losses of one iteration.

        Args:
            parts: of the batch, each for one sample of the topologies.
            generator: of this rank and iteration.
        """
        raise NotImplementedError

    @property
    def arch_is_on(self) -> bool:
        """Whether the probabilities learn in the present iteration."""
        return self.iteration >= self.arch_warmup_iters

    @property
    def arch_rate(self) -> float:
        """The factor of the probabilities' gradients in the present iteration, once they learn: in [0, 1]."""
        if not self.arch_decay_iters:
            return 1.0
        return max(0.0, 1 - (self.iteration - self.arch_warmup_iters) / self.arch_decay_iters)

    def _features(self, samples: Sequence[Sample], topology: Topology) -> dict[str, Tensor]:
        run = self.supernet if callable(self.supernet) else self.supernet.forward
        return run(self.preprocess(samples), topology)

    def _task_loss(
        self, name: str, features: Mapping[str, Tensor], part: Sequence[Sample]
    ) -> dict[str, Tensor]:
        """A task's loss of a part under its name; nothing if no sample has its label."""
        task = self.tasks[name]
        losses = task({key: features[key] for key in task.in_features}, part)
        return (
            {name: torch.stack([_at_least_float(value) for value in losses.values()]).sum()} if losses else {}
        )

    def _task_losses(self, part: Sequence[Sample], topology: Topology) -> Losses:
        """Each task's loss of one part under one topology; none for a task without labels."""
        features = self._features(part, topology)
        return {
            key: loss for name in self.tasks for key, loss in self._task_loss(name, features, part).items()
        }

    def _sample_losses(
        self, parts: list[Sequence[Sample]], generator: torch.Generator
    ) -> tuple[Tensor, list[Losses]]:
        """A topology from q for each part, N x S x P booleans on the CPU, and each task's loss of the part under it."""
        masks = self.distribution.sample_proxy(len(parts), generator)
        topologies = [Topology(mask) for mask in masks]
        self.diagnostics = {"topologies": topologies}
        return masks, [self._task_losses(*pair) for pair in zip(parts, topologies, strict=True)]

    def _estimate(
        self,
        losses: list[Losses],
        ratios: Tensor,
        self_normalize: bool = False,
        importance_weighted: bool = True,
        reinforced: bool = False,
    ) -> Estimate:
        """Weights and scores from the losses of all ranks, by one collective; takes them into the loss window.

        Args:
            losses: of each part by task.
            ratios: T x N, how much likelier the samples are under the task's distribution than where they came from.
            self_normalize: Eq. 11 instead of Eq. 8.
            importance_weighted: whether the scores carry the weights.
            reinforced: whether the scores are for REINFORCE, which shared images have their losses compared for.
        """
        rank, world_size = rank_and_world_size()
        device = self.distribution.probs.device
        with torch.no_grad():
            zero = torch.zeros((), dtype=self.distribution.probs.dtype, device=device)
            detached = [[part.get(name, zero).detach() for part in losses] for name in self.tasks]
            detached = torch.stack([torch.stack(row) for row in detached]).to(device)
            valid = torch.tensor([[name in part for part in losses] for name in self.tasks], device=device)
            # All ranks' samples side by side: T x (ranks * parts).
            ratios, detached, seen = gather(torch.stack([ratios, detached, valid.to(ratios.dtype)]))
            seen = seen > 0.5
            weights = importance_weights(ratios, seen, self_normalize)
            compared = compare(detached, seen, len(losses)) if reinforced and self.shared_images else detached
            normalized = self.window.normalize(compared, seen, self.iteration)
            arch_weights = (
                weights
                if importance_weighted
                else importance_weights(torch.ones_like(ratios), seen, self_normalize=True)
            )
            scores = torch.where(seen, arch_weights * normalized, 0.0) * world_size
            mine = slice(rank * len(losses), (rank + 1) * len(losses))
            self.diagnostics |= diagnose(
                list(self.tasks), self.distribution, self.cost, weights, detached, seen
            )
        return Estimate(weights[:, mine] * world_size, scores[:, mine], self.window.deviation)

    def _named(self, losses: list[Losses], weights: Tensor, surrogates: Sequence[Tensor] | Tensor) -> Losses:
        """``loss_<task>``, the sum of each task's losses times ``weights`` T x N, and T ``loss_arch_<task>``."""
        output = {}
        for t, name in enumerate(self.tasks):
            terms = [w * part[name] for w, part in zip(weights[t], losses, strict=True) if name in part]
            output[f"loss_{name}"] = torch.stack(terms).sum() if terms else self._zero()
            output[f"loss_arch_{name}"] = surrogates[t]
        return output

    def _reinforced(self, losses: list[Losses], log_prob: Tensor, estimate: Estimate) -> Losses:
        """The step's losses with REINFORCE's surrogates (Eq. 9), whose gradients reach the probabilities alone.

        Args:
            log_prob: T x N, log p_t of each sample.
        """
        if not self.arch_is_on:
            return self._named(losses, estimate.weights, [self._zero()] * len(self.tasks))
        surrogates = (estimate.scores * log_prob).sum(dim=1)
        if self.cost is not None:
            generator = derive_generator("prices", self.seed, rank_and_world_size()[0], self.iteration)
            surrogates = (
                surrogates + self.cost.expectation(self.distribution.probs, generator) / estimate.scale
            )
        return self._named(losses, estimate.weights, self.arch_rate * surrogates)

    def _straight_through(
        self, losses: list[Losses], hard: Tensor, masks: Tensor, estimate: Estimate
    ) -> Losses:
        """The step's losses, of relaxed masks, with prices whose gradients reach the probabilities alone.

        The gradients of losses and prices are divided by the losses' deviation, as REINFORCE has them; the mean,
        which it subtracts too, has none.

        Args:
            hard: T x N x S x P, the sampled masks.
            masks: the same as the losses were computed from: relaxed, or without gradients.
        """
        surrogates: Sequence[Tensor] | Tensor = [self._zero()] * len(self.tasks)
        if masks.requires_grad:
            factors = (self.arch_rate / estimate.scale)[:, None]
            masks.register_hook(lambda gradient: gradient * factors[..., None, None])
            if self.cost is not None:
                prices = self.cost(relax(hard, self.distribution.probs[:, None]))
                surrogates = (estimate.weights * factors * prices).sum(dim=1)
        return self._named(losses, estimate.weights, surrogates)

    def _zero(self) -> Tensor:
        """Zero gradients where there is nothing to learn, so that backward always has something to run on."""
        return self.distribution.probs.sum() * 0.0

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
        return param_groups(
            self, self.distribution.probs, lr, arch_lr_factor, weight_decay, weight_decay_norm
        )

    def after_step(self) -> None:
        """To be called after each optimizer step: projects the probabilities into their range."""
        self.distribution.project()


def _at_least_float(value: Tensor) -> Tensor:
    """Losses of half precision are weighted and summed in single precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
