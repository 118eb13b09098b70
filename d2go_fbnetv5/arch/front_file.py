"""``front.json``: a task's networks that no other beats in both loss and cost, and the choice of one by budget."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from d2go_fbnetv5.arch.cost import METRICS, BlockCosts, block_costs
from d2go_fbnetv5.arch.families import NUM_PATHS, build_family
from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.options import require
from d2go_fbnetv5.utils.text_files import read_json_object


def pick_topology(
    path: str | os.PathLike[str],
    task: str,
    budget: Mapping[str, float],
    family: str,
    outputs: Collection[str],
) -> Topology:
    """Return the network of a task's front with the least loss that stays within a budget.

    FLOPs and parameters are counted for the backbone as it is built, Stage 0 included, at the front's size of images;
    milliseconds are those of the front, for the head of the search.

    Args:
        path: of a ``front.json``.
        budget: the most that the network may cost by name: "flops", "params", or a latency table of the front.
        family: that the network is built of.
        outputs: names of the paths that its head reads.

    Raises:
        FileNotFoundError: there is no such file; InputError: it is no front, of another family or without the task, a
            cost is unknown, or nothing is as cheap; the last says what the least is.
    """
    try:
        content = read_json_object(path)
        _require_front(content, task, family)
        tables = {
            name: block_costs(build_family(family), content["size"], name)
            for name in budget
            if name in METRICS
        }
        points = [_point(point, tables, outputs) for point in content["tasks"][task]["front"]]
        for name, most in budget.items():
            least = min(_cost(costs, name) for _, costs, _ in points)
            if least > most:
                raise InputError(
                    f"no network of {task} costs {most:g} {name} or less, the least is {least:g}"
                )
        within = [p for p in points if all(p[1][name] <= most for name, most in budget.items())]
        if not within:
            raise InputError(f"no network of {task} stays within all of {dict(budget)}")
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
    return min(within, key=lambda point: point[0])[2]


def _require_front(content: dict[str, Any], task: str, family: str) -> None:
    found = require(content, "family", lambda value: isinstance(value, str), "a family's name")
    if found != family:
        raise InputError(f"a front of family {found}, allowed is the network's own, {family}")
    require(content, "size", lambda value: isinstance(value, list), "[height, width]")
    tasks = require(content, "tasks", lambda value: isinstance(value, dict), "an object")
    if task not in tasks:
        raise InputError(f"no task {task!r}; available: {', '.join(tasks)}")
    entry = require(tasks, task, lambda value: isinstance(value, dict), "an object", "tasks.")
    require(entry, "front", lambda value: value and isinstance(value, list), "a list", f"tasks.{task}.")


def _point(
    point: Any, tables: Mapping[str, BlockCosts], outputs: Collection[str]
) -> tuple[float, dict[str, float], Topology]:
    """Return loss, costs by name, and the network."""
    if not isinstance(point, dict):
        raise InputError("a point of a front is an object")
    loss = require(point, "loss", is_number, "a number")
    costs = require(point, "costs", lambda value: isinstance(value, dict), "an object")
    topology = Topology.from_dict(point.get("topology"))
    if topology.num_paths != NUM_PATHS:
        raise InputError(f"a topology of {topology.num_paths} paths, allowed is {NUM_PATHS}")
    return (
        loss,
        {**costs, **{name: costs.network(topology, outputs) for name, costs in tables.items()}},
        topology,
    )


def _cost(costs: Mapping[str, float], name: str) -> float:
    if name not in costs or not is_number(costs[name]):
        raise InputError(f"budget of {name!r}, allowed are {', '.join({*METRICS, *costs})}")
    return costs[name]
