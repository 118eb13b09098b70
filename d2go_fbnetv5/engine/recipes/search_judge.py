"""Judges what a search found: each task's most likely topology beside random ones, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import BlockCosts, Topology
from d2go_fbnetv5.engine.evaluation import Batch, evaluate, precise_batch_norm
from d2go_fbnetv5.reports.results import TaskResult
from d2go_fbnetv5.search import Decision, Search, derive_generator
from d2go_fbnetv5.tasks.base import DatasetInfo, Task
from d2go_fbnetv5.utils.errors import InputError


class TaskNetwork(nn.Module):
    """The supernet under one topology with one task's head: list of samples -> list of the head's outputs.

    Blocks that the head cannot be reached from are left out; they change nothing.
    """

    def __init__(self, search: Search, task: str, topology: Topology) -> None:
        super().__init__()
        self.supernet, self.task = search.supernet, cast(Task, search.tasks[task])
        self.topology = topology.prune(self.task.in_features)
        self._preprocess: Callable[[Sequence[dict[str, Any]]], Tensor] = search.preprocess

    def forward(self, batch: Batch) -> Any:
        features = self.supernet(self._preprocess(batch), self.topology)
        return self.task({name: features[name] for name in self.task.in_features}, batch)


@dataclass(frozen=True)
class SearchJudge:
    """Evaluates topologies with a search's weights.

    Args:
        flops: of the family's blocks.
        info: what the data set labels.
        statistics: training batches to re-estimate batch-norm statistics on, see `precise_batch_norm`.
        eval_batches: this process' part of the validation data; iterated once per evaluation.
    """

    search: Search
    flops: BlockCosts
    info: DatasetInfo
    statistics: Sequence[Batch]
    eval_batches: Iterable[Batch]

    def metrics(self, task: str, topology: Topology) -> dict[str, float]:
        """Return the task's metrics under a topology. Every process must call it."""
        network = TaskNetwork(self.search, task, topology)
        with precise_batch_norm(network, self.statistics):
            return evaluate(network, self.eval_batches, network.task.evaluator(self.info))

    def result(
        self,
        name: str,
        found: Decision,
        num_random: int,
        seed: int,
        progress: Callable[[], None] = lambda: None,
    ) -> TaskResult:
        """Return what was found for a task, and random topologies that cost as much or more.

        Args:
            num_random: how many.
            seed: of the random ones.
            progress: called after each evaluation.
        """
        task = cast(Task, self.search.tasks[name])
        topology = found.topology
        index = list(self.search.tasks).index(name)
        least = self.flops.network(topology, task.in_features)
        generator = derive_generator("random topologies", seed, name)
        randoms = [
            random_topology(self.flops, task.in_features, topology.num_stages, least, generator)
            for _ in range(num_random)
        ]

        measured = []
        for candidate in (topology, *randoms):
            measured.append(self.metrics(name, candidate))
            progress()
        return TaskResult(
            task=name,
            topology=topology,
            probabilities=self.search.distribution.probs[index].tolist(),
            outputs=tuple(task.in_features),
            flops=self.flops.network(topology),
            flops_pruned=least,
            relative_cost=self.flops.relative(topology),
            relative_cost_pruned=self.flops.relative(topology.prune(task.in_features)),
            full_flops=self.flops.network(Topology.full(topology.num_stages)),
            metric_name=task.primary_metric,
            higher_is_better=task.higher_is_better,
            metrics=measured[0],
            random_topologies=randoms,
            random_metrics=[m[task.primary_metric] for m in measured[1:]],
            candidates=found.candidates,
            undecided=found.undecided,
            random_flops=[self.flops.network(t, task.in_features) for t in randoms],
        )


def random_topology(
    costs: BlockCosts,
    outputs: Collection[str],
    num_stages: int,
    least: float,
    generator: torch.Generator,
) -> Topology:
    """A random topology as in Table 5, each block kept with probability 0.5, whose network costs `least` or more.

    Where it costs less, blocks are added in a random order. What counts is the network pruned for `outputs`: else a
    topology full of blocks that its head cannot reach would be an easy rival of equal cost.

    Raises:
        ValueError: even the full supernet costs less.
    """
    num_paths = len(costs.blocks)
    full = costs.network(Topology.full(num_stages), outputs)
    if full < least:
        raise InputError(f"no topology costs {least:g} or more: the full supernet's is {full:g}")
    mask = torch.rand(num_stages * num_paths, generator=generator) < 0.5
    for block in torch.randperm(len(mask), generator=generator).tolist():
        topology = Topology(mask.view(num_stages, num_paths))
        if costs.network(topology, outputs) >= least:
            return topology
        mask[block] = True
    return Topology.full(num_stages)
