"""Judges what a search found: each task's most likely topology beside random ones, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from d2go_fbnetv5.arch import BlockCosts, Topology
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge, Verdict
from d2go_fbnetv5.reports.results import TaskResult
from d2go_fbnetv5.search import Decision, Search, derive_generator
from d2go_fbnetv5.tasks.base import Task
from d2go_fbnetv5.utils.errors import InputError


@dataclass(frozen=True)
class SearchJudge:
    """Makes the results of a search.

    Args:
        networks: judges with the search's weights.
        flops: of the family's blocks.
    """

    networks: NetworkJudge
    flops: BlockCosts

    @property
    def search(self) -> Search:
        """Return the search that is judged."""
        return self.networks.search

    def metrics(self, topologies: Mapping[str, Topology]) -> dict[str, dict[str, float]]:
        """Return the metrics of tasks, each under a topology. Every process must call it."""
        found = self.networks(topologies.items(), losses=False)
        return {task: verdict.metrics for (task, _), verdict in found.items()}

    def results(
        self,
        found: Mapping[str, Decision],
        num_random: int,
        seed: int,
        progress: Callable[[float], None] = lambda done: None,
    ) -> tuple[TaskResult, ...]:
        """Return what was found for each task, and random topologies that cost as much or more.

        Every process must call it.

        Args:
            num_random: how many for each task.
            seed: of the random ones.
            progress: see `NetworkJudge`.
        """
        randoms = {name: self._randoms(name, each.topology, num_random, seed) for name, each in found.items()}
        wanted = [
            (name, topology) for name, each in found.items() for topology in (each.topology, *randoms[name])
        ]
        verdicts = self.networks(wanted, losses=False, progress=progress)
        return tuple(self._result(name, each, randoms[name], verdicts) for name, each in found.items())

    def again(self, before: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
        """Return another search's results with what their networks are worth with this one's weights.

        Every process must call it.
        """
        wanted = [
            (each.task, topology) for each in before for topology in (each.topology, *each.random_topologies)
        ]
        verdicts = self.networks(wanted, losses=False)

        def metrics(name: str, topology: Topology) -> dict[str, float]:
            return verdicts[name, topology.prune(self.search.in_features[name])].metrics

        return tuple(
            replace(
                each,
                metrics=metrics(each.task, each.topology),
                random_metrics=[
                    metrics(each.task, topology)[each.metric_name] for topology in each.random_topologies
                ],
            )
            for each in before
        )

    def _randoms(self, name: str, topology: Topology, num_random: int, seed: int) -> list[Topology]:
        outputs = self.search.outputs(name)
        least = self.flops.network(topology, outputs)
        generator = derive_generator("random topologies", seed, name)
        return [
            random_topology(self.flops, outputs, topology.num_stages, least, generator)
            for _ in range(num_random)
        ]

    def _result(
        self,
        name: str,
        found: Decision,
        randoms: list[Topology],
        verdicts: Mapping[tuple[str, Topology], Verdict],
    ) -> TaskResult:
        task = cast(Task, self.search.tasks[name])
        topology, outputs = found.topology, self.search.outputs(name)
        group = next((group for group in self.search.groups if name in group), ())

        def metrics(topology: Topology) -> dict[str, float]:
            return verdicts[name, topology.prune(task.in_features)].metrics

        return TaskResult(
            task=name,
            topology=topology,
            probabilities=self.search.distribution.probs[list(self.search.tasks).index(name)].tolist(),
            outputs=outputs,
            flops=self.flops.network(topology),
            flops_pruned=self.flops.network(topology, outputs),
            relative_cost=self.flops.relative(topology),
            relative_cost_pruned=self.flops.relative(topology.prune(outputs)),
            full_flops=self.flops.network(Topology.full(topology.num_stages)),
            metric_name=task.primary_metric,
            higher_is_better=task.higher_is_better,
            metrics=metrics(topology),
            random_topologies=randoms,
            random_metrics=[metrics(random)[task.primary_metric] for random in randoms],
            candidates=found.candidates,
            undecided=found.undecided,
            group=group if len(group) > 1 else (),
            random_flops=[self.flops.network(random, outputs) for random in randoms],
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
