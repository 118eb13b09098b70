"""The findings of a search as plain data: the source of every report and of ``topologies.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.arch.topology_file import NUMBERS, TopologyEntry
from d2go_fbnetv5.utils.errors import InputError

_RIVALS = ("metric", "higher_is_better", "topologies", "metrics", "flops")  # of an entry's "random"


@dataclass(frozen=True)
class TaskResult:
    """The network found for one task.

    FLOPs are absolute multiply-adds of one image through the backbone (Stage 0 and the kept blocks, no head);
    relative costs are Appendix E's ``sum(a_b c_b) / sum(c_b)`` over the searchable blocks, in [0, 1].
    """

    task: str
    topology: (
        Topology  # that was found: the most likely one, unpruned; of several candidates the best, pruned
    )
    probabilities: list[list[float]]  # S x P, each in (0, 1)
    outputs: tuple[str, ...]  # the paths the head reads, such as ("path3",), and the others of its group's
    flops: float
    flops_pruned: float
    relative_cost: float
    relative_cost_pruned: float
    full_flops: float  # the supernet with every block
    metric_name: str  # a key of ``metrics``
    higher_is_better: bool
    metrics: dict[str, float]
    random_topologies: list[Topology]  # pruned, of equal or greater cost than ``topology`` pruned
    random_metrics: list[float]  # ``metric_name`` of each random topology
    random_flops: list[float]  # of each, pruned
    candidates: int = 1  # likely topologies that were compared
    group: tuple[str, ...] = ()  # the tasks that share the network, this one among them; () where it is alone
    undecided: int = 0  # blocks that the head sees and whose probability is not close to 0 or 1

    def __post_init__(self) -> None:
        lengths = (len(self.random_topologies), len(self.random_metrics), len(self.random_flops))
        if len(set(lengths)) > 1:
            raise InputError(
                f"{self.task}: {lengths} random topologies, metrics and FLOPs; need as many of each"
            )

    @staticmethod
    def of_entry(name: str, entry: TopologyEntry, full_flops: float) -> TaskResult:
        """Return what ``topologies.json`` says of a task that a search has found something for.

        Args:
            name: of the task.
            full_flops: of the supernet with every block.

        Raises:
            InputError: the entry lacks something that searches write.
        """
        lacking = [key for key in ("probabilities", *NUMBERS) if getattr(entry, key) is None]
        lacking += [key for key in _RIVALS if key not in entry.random]
        if lacking:
            raise InputError(
                f"topologies.json: {name} has no {lacking[0]}, allowed: all that a search writes"
            )

        def measured(value: float | None) -> float:
            return math.nan if value is None else float(value)

        random = entry.random
        return TaskResult(
            task=name,
            topology=entry.topology,
            probabilities=[list(row) for row in entry.probabilities or ()],
            outputs=entry.outputs,
            flops=measured(entry.flops),
            flops_pruned=measured(entry.flops_pruned),
            relative_cost=measured(entry.relative_cost),
            relative_cost_pruned=measured(entry.relative_cost_pruned),
            full_flops=full_flops,
            metric_name=random["metric"],
            higher_is_better=random["higher_is_better"],
            metrics={key: measured(value) for key, value in entry.metrics.items()},
            random_topologies=[Topology.from_dict(given) for given in random["topologies"]],
            random_metrics=[measured(value) for value in random["metrics"]],
            random_flops=[measured(value) for value in random["flops"]],
            group=entry.group,
        )

    @property
    def pruned(self) -> Topology:
        """Return the topology without the blocks that the head cannot reach."""
        return self.topology.prune(set(self.outputs))

    @property
    def full_share(self) -> float:
        """FLOPs of the unpruned network as a share of the full supernet's, in (0, 1]."""
        return self.flops / self.full_flops

    @property
    def full_share_pruned(self) -> float:
        """FLOPs of the pruned network as a share of the full supernet's, in (0, 1]."""
        return self.flops_pruned / self.full_flops

    @property
    def metric(self) -> float:
        """Return the task's primary metric; NaN if it was not measured."""
        return self.metrics.get(self.metric_name, math.nan)

    @property
    def random_mean(self) -> float:
        """Mean metric of the random topologies; NaN without any."""
        return sum(self.random_metrics) / len(self.random_metrics) if self.random_metrics else math.nan

    @property
    def random_best(self) -> float:
        """Metric of the best random topology; NaN without any."""
        if not self.random_metrics:
            return math.nan
        return max(self.random_metrics) if self.higher_is_better else min(self.random_metrics)

    def at_least_as_good_as(self, value: float) -> bool:
        """Return whether the found topology's metric is no worse than ``value``; false if either is NaN."""
        return self.metric >= value if self.higher_is_better else self.metric <= value

    def fall(self, before: float) -> float:
        """Return by what share of ``before`` the metric is worse, below 0 where it is better; NaN if either is NaN."""
        worse = before - self.metric if self.higher_is_better else self.metric - before
        return worse / abs(before) if before else math.copysign(math.inf, worse) if worse else worse


@dataclass(frozen=True)
class SearchResults:
    """One search: what was run, and what it found for each task."""

    family: str
    num_stages: int
    size: tuple[int, int]  # (height, width) in pixels at which costs were counted
    iterations: int
    seconds: float
    tasks: tuple[TaskResult, ...]
    precise_bn_images: int  # images used to re-estimate batch-norm statistics before each evaluation
    eval_images: int
    # of the cost regulariser by task, relative as in Appendix E; {}: there was none
    cost_targets: dict[str, float] = field(default_factory=dict)
    cost_metric: str = "flops"  # what the regulariser counted
    earlier: tuple[str, ...] = ()  # the tasks whose results are those of the search that others were added to

    @property
    def shared(self) -> str:
        """A sentence on which tasks share a network; "" where none do."""
        groups = dict.fromkeys(task.group for task in self.tasks if task.group)
        return "".join(f"One network is of {', '.join(group)}, pruned for all of them. " for group in groups)

    @property
    def undecided(self) -> str:
        """A sentence on what the probabilities left open and how it was decided; "" where the mode was taken."""
        if not any(task.candidates > 1 for task in self.tasks):
            return ""
        blocks = ", ".join(
            f"{task.task} {task.undecided}" for task in self.tasks if task.task not in self.earlier
        )
        most = max(task.candidates for task in self.tasks)
        return (
            f"Blocks that the probabilities left undecided: {blocks}; the best of the {most} likeliest networks, by "
            "loss and price on training images, was taken."
        )
