"""Judges many networks of one supernet at once, what they begin with once for all of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.data.moves import labels_in_image
from d2go_fbnetv5.engine.evaluation import Batch, BatchNorms, Moments, average_over_ranks, device_of, in_mode
from d2go_fbnetv5.engine.loop import images_to_device, to_device
from d2go_fbnetv5.search import Search
from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Task
from d2go_fbnetv5.utils.ranks import gather
from d2go_fbnetv5.utils.seeding import seed_all

AT_ONCE = 128  # networks whose statistics and predictions are held in memory

Network = tuple[str, Topology]
"""A task's name and a topology, pruned for its head: topologies that differ in what it does not see are one network."""


@dataclass(frozen=True)
class Verdict:
    """A network's loss and metrics.

    Attributes:
        loss: mean over images, as in training but with the measured batch-norm statistics; NaN if it was not asked
            for, or no image has the task's label.
        metrics: the task's; empty if they were not asked for.
    """

    loss: float
    metrics: dict[str, float]


@dataclass
class _Leaf:
    """A task's head at the end of a network, and what it has been seen to do."""

    task: Task
    evaluator: Evaluator
    moments: Moments = field(default_factory=Moments)
    loss: float = 0.0
    images: int = 0


@dataclass
class _Node:
    """The networks that begin alike.

    Attributes:
        example: one of them.
        stage: up to which they do.
        blocks: statistics of the next stage's blocks that any of them keeps, by path.
        following: those of them that go on alike, by the next stage's row.
    """

    example: Topology
    stage: int = 0
    blocks: dict[int, Moments] = field(default_factory=dict)
    following: dict[tuple[bool, ...], _Node] = field(default_factory=dict)
    leaves: dict[str, _Leaf] = field(default_factory=dict)

    def add(self, name: str, topology: Topology, leaf: _Leaf) -> None:
        if self.stage == topology.num_stages:
            self.leaves[name] = leaf
            return
        row = topology.mask[self.stage]
        for path, kept in enumerate(row):
            if kept:
                self.blocks.setdefault(path, Moments())
        self.following.setdefault(row, _Node(topology, self.stage + 1)).add(name, topology, leaf)

    def measured(self) -> Iterator[Moments]:
        yield from self.blocks.values()
        yield from (leaf.moments for leaf in self.leaves.values())
        for node in self.following.values():
            yield from node.measured()


@dataclass(frozen=True)
class NetworkJudge:
    """Says what networks of a search are worth, each with batch-norm statistics of its own.

    The figures are those of `precise_batch_norm` and `evaluate` on each network alone. But a block's feature depends
    on the stages before it alone, batch norm included: the networks are walked through as a tree of prefixes,
    batch after batch, depth first, and a block is run once for all networks that begin alike. In memory are a batch's
    features along one branch, and of `AT_ONCE` networks the statistics and what evaluators collect.

    Args:
        search: its weights, statistics and modes stay as they are.
        info: what the data set labels.
        statistics: batches to measure batch-norm statistics on, as many on every process.
        eval_batches: this process' part of the validation data; iterated once for each `AT_ONCE` networks.
    """

    search: Search
    info: DatasetInfo
    statistics: Sequence[Batch]
    eval_batches: Iterable[Batch]

    def __call__(
        self,
        networks: Iterable[tuple[str, Topology]],
        losses: bool = True,
        metrics: bool = True,
        progress: Callable[[float], None] = lambda done: None,
    ) -> dict[Network, Verdict]:
        """Return what each different network is worth, in the order of `by_prefix`. Every process must call it.

        Args:
            networks: tasks' names and topologies, pruned or not.
            losses, metrics: whether these are wanted. Losses seed the global generators, for heads that sample.
            progress: called with the share of the work that is done, in [0, 1].
        """
        ordered = self.by_prefix(networks)
        found: dict[Network, Verdict] = {}
        for start in range(0, len(ordered), AT_ONCE):
            some = ordered[start : start + AT_ONCE]

            def advance(share: float, some: int = len(some)) -> None:
                progress((len(found) + share * some) / len(ordered))

            found.update(self._judge(some, losses, metrics, advance))
        return found

    def by_prefix(self, networks: Iterable[tuple[str, Topology]]) -> list[Network]:
        """Return each different network once, in an order that has those that begin alike beside each other."""
        pruned = {(task, topology.prune(self.search.in_features[task])) for task, topology in networks}
        return sorted(pruned, key=lambda network: (network[1].mask, network[0]))

    @torch.no_grad()
    def _judge(
        self, networks: Sequence[Network], losses: bool, metrics: bool, progress: Callable[[float], None]
    ) -> dict[Network, Verdict]:
        search, root = self.search, _Node(networks[0][1])
        leaves = {}
        for name, topology in networks:
            task = cast(Task, search.tasks[name])
            leaf = leaves[name, topology] = _Leaf(task, task.evaluator(self.info))
            leaf.evaluator.reset()
            root.add(name, topology, leaf)
        norms = BatchNorms(search)
        with norms.restored(), in_mode(search, training=False):
            walk = _Walk(search, norms, losses, metrics)
            with norms.measuring():
                for batch in self.statistics:
                    walk.measure(root, batch)
            average_over_ranks([walk.stage0, *root.measured()])
            total = len(self.eval_batches) if isinstance(self.eval_batches, Sized) else math.inf
            for i, batch in enumerate(self.eval_batches):
                walk.judge(root, batch, seed=i)
                progress((i + 1) / total)
        return {network: _verdict(leaf, losses, metrics) for network, leaf in leaves.items()}


class _Walk:
    """Takes batches through a tree of networks."""

    def __init__(self, search: Search, norms: BatchNorms, losses: bool, metrics: bool) -> None:
        self.search, self.norms, self.losses, self.metrics = search, norms, losses, metrics
        self.device = device_of(search)
        self.stage0 = Moments()
        self.head_norms = {task: len(BatchNorms(task).norms) for task in search.tasks.values()}

    def measure(self, root: _Node, batch: Batch) -> None:
        """Add to every block's and head's statistics what they meet in a batch."""
        batch = images_to_device(batch, self.device)

        def head(leaf: _Leaf, features: dict[str, Tensor]) -> None:
            last = self.head_norms[leaf.task]
            if last:
                self.norms.measure(leaf.moments, lambda: leaf.task(features, batch), stop_after=last)

        self._walk(root, batch, self.norms.measure, head)

    def judge(self, root: _Node, batch: Batch, seed: int) -> None:
        """Let every head say its loss of a batch, and predict.

        Args:
            seed: of heads that sample, such as regions of detectors.
        """
        inputs = images_to_device(batch, self.device)
        labelled = [labels_in_image(sample) for sample in inputs] if self.losses else []

        def run(moments: Moments, part: Callable[[], Any]) -> Any:
            self.norms.put(moments)
            return part()

        def head(leaf: _Leaf, features: dict[str, Tensor]) -> None:
            self.norms.put(leaf.moments)
            if self.metrics:
                outputs = leaf.task(features, inputs)
                leaf.evaluator.process(batch, [to_device(output, torch.device("cpu")) for output in outputs])
            if self.losses:
                seed_all(0, iteration=seed)
                with _saying_losses(leaf.task):
                    losses = leaf.task(features, labelled)
                if losses:
                    leaf.loss += len(batch) * float(sum(losses.values()))
                    leaf.images += len(batch)

        self._walk(root, inputs, run, head)

    def _walk(
        self,
        root: _Node,
        batch: Batch,
        run: Callable[[Moments, Callable[[], Any]], Any],
        head: Callable[[_Leaf, dict[str, Tensor]], None],
    ) -> None:
        supernet, paths = self.search.supernet, tuple(self.search.supernet.strides)

        def visit(node: _Node, features: list[Tensor]) -> None:
            read = dict(zip(paths, features, strict=True))
            for name, leaf in node.leaves.items():
                head(leaf, {key: read[key] for key in self.search.in_features[name]})
            made = {
                path: run(moments, partial(supernet.run_block, node.stage + 1, path, features, node.example))
                for path, moments in node.blocks.items()
            }
            for row, following in node.following.items():
                visit(following, [made[p] if kept else features[p] for p, kept in enumerate(row)])

        images = self.search.preprocess(batch)
        visit(root, run(self.stage0, partial(supernet.run_stage0, images)))


@contextlib.contextmanager
def _saying_losses(head: nn.Module) -> Iterator[None]:
    """Inside, a head in evaluation mode says its losses; what else training changes in it stays off."""
    modules = list(head.modules())
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for module in modules:
        module.training = not isinstance(module, still)
    try:
        yield
    finally:
        for module in modules:
            module.training = False


def _verdict(leaf: _Leaf, losses: bool, metrics: bool) -> Verdict:
    sums = gather((leaf.loss, leaf.images)) if losses else []
    images = sum(count for _, count in sums)
    return Verdict(
        sum(loss for loss, _ in sums) / images if images else math.nan,
        leaf.evaluator.evaluate() if metrics else {},
    )
