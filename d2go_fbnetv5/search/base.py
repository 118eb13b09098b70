"""The search algorithms' common ground: tasks, distributions, parts of a batch, how losses teach probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.distribution import ArchDistribution, Drawn, relax
from d2go_fbnetv5.search.estimators import LossWindow, compare, effective_sample_size
from d2go_fbnetv5.search.losses import Pool, StepLosses
from d2go_fbnetv5.search.optimizer_groups import arch_group, weight_groups
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import rank
from d2go_fbnetv5.utils.seeding import derive_generator

Batch = Sequence[Mapping[str, Any]]  # a data set's samples
Losses = dict[str, Tensor]

STRAIGHT_THROUGH, REINFORCE = "straight_through", "reinforce"


def stack_images(batch: Batch) -> Tensor:
    """Stack N samples' ``image`` of one size: C x H x W -> N x C x H x W floats."""
    return torch.stack([sample["image"] for sample in batch]).float()


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch into parts that differ by one sample at most, in its order.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    if len(batch) < num_parts:
        raise InputError(
            f"a batch of {len(batch)} samples cannot be split into samples_per_rank = {num_parts} parts"
        )
    bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    return [batch[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]


class Search(nn.Module):
    """Trains a supernet and every task's distribution over topologies at once.

    In training, ``forward`` returns losses whose sum, run backward once, gives the gradients of a whole iteration:
    ``loss_<task>`` trains the supernet's and the heads' weights, ``loss_arch_<task>`` the probabilities alone (by
    straight-through estimation, ``loss_<task>`` does so too). Any trainer that sums a dict of losses can run it;
    under DDP, which averages gradients over ranks, the losses are scaled so that the average is the estimate over
    all ranks' samples.

    Args:
        supernet: has ``num_stages``, ``num_paths`` and ``forward(images, topology) -> {"path0": ...}``; with
            shared images also ``forward_each(images, topologies)``, for straight-through estimation
            ``forward_soft(images, mask)``.
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
        train_weights: False leaves the weights of a supernet and heads that are trained already as they are, so that
            a step has no backward pass.
        num_earlier: how many of the tasks, the first ones, were found by an earlier search. Their probabilities are
            there and do not learn, and T below are the other tasks.
        groups: names of tasks that share one distribution, for one network with several heads. It learns from the sum
            of their losses and pays the price once.

    Attributes:
        estimators: how the gradient of the probabilities can be estimated, the usual way first; empty where they
            do not learn.
        options: the names of further arguments of the constructor.
        distribution: the ``ArchDistribution``, tasks in the order of ``tasks``.
        learning: the names of the tasks that learn.
        groups: the same, those that share a distribution together; a task that shares none is alone.
        in_features: the features that each task's head reads, by the task's name.
        diagnostics: of the last training step, on the model's device and without gradients: per task
            ``task_loss/``, ``entropy/`` (bits a block), ``ess/`` (effective sample size) and
            ``expected_cost/`` (relative), and under "topologies" those sampled on this rank.
    """

    estimators: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    iteration_count: Tensor
    group_sizes: Tensor

    def __init__(
        self,
        supernet: Any,
        tasks: Iterable[Any],
        samples_per_rank: int = 4,
        arch_warmup_iters: int = 0,
        arch_decay_iters: int = 0,
        init_prob: float = 0.5,
        loss_window: int = 200,
        cost: CostRegularizer | None = None,
        prob_min: float = 0.02,
        seed: int = 0,
        preprocess: Callable[[Batch], Tensor] = stack_images,
        shared_images: bool = False,
        train_weights: bool = True,
        num_earlier: int = 0,
        groups: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        tasks = list(tasks)
        names = [task.name for task in tasks]
        self.learning = tuple(names[num_earlier:])
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
        if cost is not None and tuple(cost.targets.shape) not in ((), (len(self.learning),)):
            raise InputError(
                f"cost has {len(cost.targets)} targets, allowed: one, or one for each of {list(self.learning)}"
            )
        self.supernet = supernet
        self.tasks = nn.ModuleDict(dict(zip(names, tasks, strict=True)))
        self.in_features = {task.name: tuple(task.in_features) for task in tasks}
        self.samples_per_rank = samples_per_rank
        self.arch_warmup_iters = arch_warmup_iters
        self.arch_decay_iters = arch_decay_iters
        self.seed = seed
        self.shared_images = shared_images
        self.preprocess = preprocess
        self.cost = cost
        self.groups = _partition(self.learning, groups)
        shared = {name: group for group in self.groups for name in group}
        leaders = [self.learning.index(shared[name][0]) for name in self.learning]
        self.distribution = ArchDistribution(
            len(tasks),
            supernet.num_stages,
            supernet.num_paths,
            init_prob,
            prob_min,
            num_earlier,
            leaders if len(self.groups) < len(leaders) else (),
        )
        sizes = torch.tensor([float(len(shared[name])) for name in self.learning])
        self.register_buffer("group_sizes", sizes, persistent=False)
        self.window = LossWindow(len(self.learning), loss_window)
        if not train_weights:
            for weight in self.parameters():
                weight.requires_grad_(weight is self.distribution.probs)
        self.register_buffer("iteration_count", torch.zeros((), dtype=torch.long))
        self.iteration = 0  # the buffer's value without a device synchronisation
        self.diagnostics: dict[str, Any] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._read_iteration())

    def _read_iteration(self) -> None:
        self.iteration = int(self.iteration_count)

    def forward(self, batch: Batch) -> Losses | list[dict[str, Any]]:
        """Training: the dict of losses. Evaluation: per sample what each task's head says of its most likely
        topology's features.

        Args:
            batch: list of sample dicts. A sample without a task's label is passed over by that task.

        Raises:
            ValueError: fewer samples than ``samples_per_rank``.
        """
        if not self.training:
            return self._predict(batch)
        generator = derive_generator("topologies", self.seed, rank(), self.iteration)
        output, self.diagnostics = self.step(self._parts(batch), generator)
        self.iteration += 1
        self.iteration_count.fill_(self.iteration)
        return output

    def _parts(self, batch: Batch) -> list[Batch]:
        if self.shared_images and self.arch_is_on:
            return [batch] * self.samples_per_rank
        return split(batch, self.samples_per_rank)

    def step(self, parts: list[Batch], generator: torch.Generator) -> tuple[Losses, dict[str, Any]]:
        """Return the losses of one iteration, and what it tells of the search (``diagnostics``).

        Args:
            parts: of the batch, each for one sample of the topologies.
            generator: of this rank and iteration.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def later_phase(self) -> Iterator[None]:
        """Inside, a step is one of those in which the probabilities learn; afterwards it has not been."""
        before = self.iteration, self.diagnostics, self.window.deviation
        buffers = [(buffer, buffer.clone()) for buffer in self.buffers()]
        self.iteration = max(self.iteration, self.arch_warmup_iters)
        try:
            yield
        finally:
            self.iteration, self.diagnostics, self.window.deviation = before
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    @property
    def arch_is_on(self) -> bool:
        """Return whether the probabilities learn in the present iteration."""
        return self.iteration >= self.arch_warmup_iters

    @property
    def arch_rate(self) -> float:
        """Return the factor of the probabilities' gradients in the present iteration, once they learn: in [0, 1]."""
        if not self.arch_decay_iters:
            return 1.0
        return max(0.0, 1 - (self.iteration - self.arch_warmup_iters) / self.arch_decay_iters)

    def outputs(self, name: str) -> tuple[str, ...]:
        """Return the features that a task's network has to give: what its head reads, and those of its group."""
        group = next((group for group in self.groups if name in group), (name,))
        return tuple(dict.fromkeys(key for each in group for key in self.in_features[each]))

    def features(self, samples: Batch, topology: Topology) -> dict[str, Tensor]:
        """Run the supernet on samples under a topology."""
        return self.supernet(self.preprocess(samples), topology)

    def features_soft(self, samples: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Run the supernet, every block of it, on samples under an S x P mask that has gradients."""
        return self.supernet.forward_soft(self.preprocess(samples), mask)

    def task_loss(self, name: str, features: Mapping[str, Tensor], part: Batch) -> Tensor | None:
        """Return a task's loss of a part, a scalar; None if no sample has its label."""
        losses = self.tasks[name]({key: features[key] for key in self.in_features[name]}, part)
        return torch.stack([_at_least_float(value) for value in losses.values()]).sum() if losses else None

    def run(self, parts: list[Batch], topologies: Sequence[Topology]) -> StepLosses:
        """Run the supernet on each part under its topology, for all tasks that learn."""
        return self.losses_of(self.learning, parts, self.features_of(parts, topologies))

    def features_of(self, parts: list[Batch], topologies: Sequence[Topology]) -> list[dict[str, Tensor]]:
        """Run the supernet on each part under its topology.

        Where the parts are the same images, what topologies have in common is computed once.
        """
        if len(parts) > 1 and all(part is parts[0] for part in parts):
            return self.supernet.forward_each(self.preprocess(parts[0]), topologies)
        return list(map(self.features, parts, topologies))

    def losses_of(
        self, names: Sequence[str], parts: list[Batch], found: Sequence[Mapping[str, Tensor]]
    ) -> StepLosses:
        """Return the losses of tasks by their names, of each part with its features."""
        rows = []
        for name in names:
            losses: dict[tuple[int, ...], Tensor | None] = {}  # by what the head reads of the same images
            keys = [tuple(id(features[key]) for key in self.in_features[name]) for features in found]
            for key, features, part in zip(keys, found, parts, strict=True):
                if key not in losses:
                    losses[key] = self.task_loss(name, features, part)
            rows.append([losses[key] for key in keys])
        return StepLosses.of(rows, self.zero())

    @torch.no_grad()
    def normalized(self, losses: Tensor, pool: Pool) -> Tensor:
        """Return losses of all ranks by the window's mean and deviation, T x M, and take them into it."""
        return self.window.normalize(losses, pool.valid, self.iteration)

    @torch.no_grad()
    def compared(self, pool: Pool) -> Tensor:
        """Return `normalized` for REINFORCE, which on shared images sees each loss beside the others of its rank."""
        losses = compare(pool.losses, pool.valid, pool.per_rank) if self.shared_images else pool.losses
        return self.normalized(losses, pool)

    def reinforce(self, log_prob: Tensor, scores: Tensor) -> Tensor:
        """Return REINFORCE's surrogates (Eq. 9) with prices: T values whose gradients reach the probabilities alone.

        Args:
            log_prob: T x N, log p_t of this rank's samples.
            scores: T x N, what each is scored by: its normalised loss, weighted.
        """
        if not self.arch_is_on:
            return self.zero().expand(len(self.learning))
        surrogates = (scores * log_prob).sum(dim=1)
        if self.cost is not None:
            if self.cost.expected:
                prices = self.cost(self.distribution.learning)
            else:
                generator = derive_generator("prices", self.seed, rank(), self.iteration)
                prices = self.cost.expectation(self.distribution.learning, generator)
            surrogates = surrogates + prices / (self.window.deviation * self.group_sizes)
        return self.arch_rate * surrogates

    def straight_through(self, drawn: Drawn, relaxed: Tensor | None, weights: Tensor) -> Tensor:
        """Scale the gradients that reach relaxed masks, and return the prices' surrogates, T values.

        The gradients of losses and prices are divided by the losses' deviation, as REINFORCE has them; the mean, which
        it subtracts too, has none.

        Args:
            relaxed: T x N x S x P, the masks that the losses were computed from; None while the probabilities rest.
            weights: T x N, of this rank's samples.
        """
        if relaxed is None:
            return self.zero().expand(len(self.tasks))
        factors = (self.arch_rate / self.window.deviation)[:, None]
        relaxed.register_hook(lambda gradient: gradient * factors[..., None, None])
        if self.cost is None:
            return self.zero().expand(len(self.tasks))
        if self.cost.expected:
            return factors[:, 0] * self.cost(self.distribution.probs)
        prices = self.cost(relax(drawn.masks, self.distribution.probs[:, None]))
        return (weights * factors * prices).sum(dim=1)

    def named(self, losses: StepLosses, weights: Tensor, surrogates: Tensor) -> Losses:
        """Return ``loss_<task>``, the sum of each task's losses times ``weights`` T x N, and ``loss_arch_<task>``."""
        sums = (weights * losses.values).sum(dim=1)
        return {
            f"{kind}_{name}": values[t]
            for t, name in enumerate(self.learning)
            for kind, values in (("loss", sums), ("loss_arch", surrogates))
        }

    def diagnose(self, topologies: Sequence[Topology], pool: Pool, weights: Tensor) -> dict[str, Any]:
        """Return what a step tells of the search.

        Args:
            topologies: that this rank sampled.
            weights: T x M, what each sample of all ranks counts for its task.
        """
        found = {
            "task_loss": torch.where(pool.valid, pool.losses, 0.0).sum(dim=1)
            / pool.valid.sum(dim=1).clamp_min(1),
            "entropy": self.distribution.entropy(),
            "ess": effective_sample_size(weights),
        }
        if self.cost is not None:
            found["expected_cost"] = self.cost.relative(self.distribution.learning.detach())
        scalars = {
            f"{key}/{name}": values[t]
            for key, values in found.items()
            for t, name in enumerate(self.learning)
        }
        return {"topologies": topologies, **scalars}

    def zero(self) -> Tensor:
        """Return zero with zero gradients, so that backward always has something to run on."""
        return self.distribution.probs.sum() * 0.0

    def _predict(self, batch: Batch) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = [{} for _ in batch]
        cache: dict[Topology, dict[str, Tensor]] = {}
        for name, topology in self.most_likely().items():
            if topology not in cache:
                cache[topology] = self.features(batch, topology)
            features = {key: cache[topology][key] for key in self.in_features[name]}
            for merged, output in zip(outputs, self.tasks[name](features, batch), strict=True):
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
        norms = weight_decay if weight_decay_norm is None else weight_decay_norm
        decays = {"weights": weight_decay, "norms": norms, "embeddings": weight_decay}
        probs = self.distribution.probs
        return [*weight_groups(self, lr, decays, left_out=[probs]), arch_group(probs, lr * arch_lr_factor)]

    def after_step(self) -> None:
        """To be called after each optimizer step: projects the probabilities into their range."""
        self.distribution.project()


def _partition(names: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Return names in groups: those that are given, and each other name alone, in the order of their first names."""
    named = [name for group in groups for name in group]
    wrong = [name for name in named if name not in names or named.count(name) > 1]
    if wrong:
        raise InputError(f"groups have {wrong[0]!r}, allowed: each of {list(names)}, once")
    given = [tuple(sorted(group, key=names.index)) for group in groups if group]
    found = [*given, *((name,) for name in names if name not in named)]
    return tuple(sorted(found, key=lambda group: names.index(group[0])))


def _at_least_float(value: Tensor) -> Tensor:
    """Losses of half precision are weighted and summed in single precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
