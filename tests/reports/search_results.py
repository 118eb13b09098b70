"""A search's results and history, made up, for the tests of the reports."""

from __future__ import annotations

import math
from typing import Any

import torch

from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.reports.results import SearchResults, TaskResult

STAGES = 3
HEADS = {"cls": ("path3",), "det": ("path2",)}


def make_task(name: str = "cls", metric: float = 0.75, **changes: Any) -> TaskResult:
    topology = Topology([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
    values: dict[str, Any] = {
        "task": name,
        "topology": topology,
        "probabilities": [[0.875 if kept else 0.125 for kept in row] for row in topology.mask],
        "outputs": HEADS.get(name, ("path3",)),
        "flops": 250e6,
        "flops_pruned": 200e6,
        "relative_cost": 0.5,
        "relative_cost_pruned": 0.25,
        "full_flops": 400e6,
        "metric_name": "top1",
        "higher_is_better": True,
        "metrics": {"top1": metric, "top5": math.nan},
        "random_topologies": [Topology.full(STAGES)] * 2,
        "random_metrics": [0.5, 0.7],
        "random_flops": [300e6, 400e6],
    }
    return TaskResult(**{**values, **changes})


def make_results(*tasks: TaskResult, **changes: Any) -> SearchResults:
    values: dict[str, Any] = {
        "family": "N",
        "num_stages": STAGES,
        "size": (64, 96),
        "iterations": 1200,
        "seconds": 83.0,
        "tasks": tasks or (make_task("cls"), make_task("det")),
        "precise_bn_images": 64,
        "eval_images": 200,
        "cost_targets": {"cls": 0.5, "det": 0.5},
    }
    return SearchResults(**{**values, **changes})


def make_history(tasks: tuple[str, ...] = ("cls", "det"), length: int = 20) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    history = []
    for iteration in range(length):
        line: dict[str, Any] = {"iteration": iteration, "lr": 0.1}
        for task in tasks:
            probs = 0.5 + 0.02 * iteration * (torch.rand(STAGES, 4, generator=generator) - 0.5)
            line[f"probs/{task}"] = probs.tolist()
            line[f"loss_{task}"] = 2.0 / (1 + iteration)
            line[f"entropy/{task}"] = 8.0 - 0.1 * iteration
            line[f"ess/{task}"] = 3.5
            line[f"expected_cost/{task}"] = 0.6
        history.append(line)
    return history
