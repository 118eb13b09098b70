"""``topologies.json``: the topologies a search found, with all that later steps need to build and cost them.

    {"format": 1, "family": "A", "num_stages": 7, "size": [224, 224],
     "tasks": {"det": {"topology": {...}, "outputs": ["path2"], "probabilities": [[...]], "flops": 1.2e9, ...}}}

Only ``topology`` and ``outputs`` are required of a task, so the file can also be written by hand. A ``front.json`` is
read as well: there a task has the networks that no other one beats, of which a budget picks one.

    {"format": 1, "family": "A", "num_stages": 7, "size": [224, 224],
     "tables": {"phone.csv": {"stage0": [4 milliseconds], "blocks": [4 milliseconds]}},
     "tasks": {"det": {"outputs": ["path2"], "front": [{"topology": {...}, "loss": 0.5, ...}, ...], ...}}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from d2go_fbnetv5.arch.cost import METRICS, MOST_PIXELS, BlockCosts, block_costs
from d2go_fbnetv5.arch.families import NUM_PATHS, PATHS
from d2go_fbnetv5.arch.topology import MOST_STAGES, Topology, joint_topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import format_least, is_number, json_value
from d2go_fbnetv5.utils.options import require, shown
from d2go_fbnetv5.utils.text_files import read_json_object

FORMAT = 1
NUMBERS = (
    "flops",
    "flops_pruned",
    "relative_cost",
    "relative_cost_pruned",
    "blocks_kept",
    "blocks_kept_pruned",
)


@dataclass(frozen=True)
class TopologyEntry:
    """One task's topology; what the file leaves out is None or empty."""

    topology: Topology  # unpruned
    outputs: tuple[str, ...]  # the paths the head reads, such as ("path3",)
    probabilities: tuple[tuple[float, ...], ...] | None = None  # S x P, each in [0, 1]
    flops: float | None = None  # multiply-adds of the backbone with Stage 0, without a head
    flops_pruned: float | None = None
    relative_cost: float | None = None  # Appendix E, in [0, 1]
    relative_cost_pruned: float | None = None
    blocks_kept: int | None = None
    blocks_kept_pruned: int | None = None
    group: tuple[str, ...] = ()  # the tasks that share the network, this one among them
    metrics: dict[str, float | None] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)  # the random topologies it was compared with


@dataclass(frozen=True)
class TopologyFile:
    """The content of a ``topologies.json`` or of a ``front.json``."""

    path: str
    family: str
    num_stages: int
    size: tuple[int, int]  # (height, width) in pixels at which the costs were counted
    tasks: dict[str, TopologyEntry]  # of a front the one with the least loss
    fronts: dict[str, tuple[TopologyEntry, ...]] = field(default_factory=dict)  # the least loss first
    tables: dict[str, BlockCosts] = field(
        default_factory=dict
    )  # milliseconds of a front by their table's name

    def task(
        self,
        name: str,
        budget: Mapping[str, float] | None = None,
        family: str | None = None,
        outputs: Collection[str] | None = None,
    ) -> TopologyEntry:
        """Return the entry of a task; of a front the one with the least loss that stays within a budget.

        Args:
            budget: the most that the backbone may cost as it is built for its head, Stage 0 included, at the file's
                size of images: by "flops", "params" or the name of a latency table of the front; None for anything.
            family: that the backbone is built of; None for the file's own.
            outputs: names of the paths that its head reads; None for those of the search's head.

        Raises:
            InputError: there is no such task or cost, the front is of another family, or nothing is as cheap; names the
                file, and the least that there is.
        """
        if name not in self.tasks:
            raise InputError(f"{self.path}: no task {name!r}; available: {', '.join(self.tasks)}")
        family, budget = family or self.family, budget or {}
        if self.fronts and family != self.family:
            raise InputError(
                f"{self.path}: a front of family {self.family}, allowed is the network's own, {family}"
            )
        entries = self.fronts.get(name, (self.tasks[name],))
        try:
            prices = {cost: self._prices(cost, family) for cost in budget}
            costs = [
                {
                    cost: each.network(entry.topology, outputs or entry.outputs)
                    for cost, each in prices.items()
                }
                for entry in entries
            ]
            for cost, most in budget.items():
                least = min(each[cost] for each in costs)
                if least > most:
                    raise InputError(
                        f"no network of {name} costs {most:g} {cost} or less, the least is {format_least(least)}"
                    )
            within = [all(each[cost] <= most for cost, most in budget.items()) for each in costs]
            if True not in within:
                raise InputError(f"no network of {name} stays within all of {budget}")
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        return entries[within.index(True)]

    def _prices(self, cost: str, family: str) -> BlockCosts:
        if cost in METRICS:
            return block_costs(family, self.size, cost)
        if cost not in self.tables:
            raise InputError(f"budget of {cost!r}, allowed are {', '.join((*METRICS, *self.tables))}")
        return self.tables[cost]


def save_topologies(
    path: str | os.PathLike[str],
    family: str,
    num_stages: int,
    size: tuple[int, int],
    entries: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write a topology file; ``entries`` maps a task's name to the keys of `TopologyEntry`.

    The content is validated as `load_topologies` would before anything is written, and the file appears whole
    or not at all. Raises ValueError for a wrong entry, OSError where the path cannot be written.
    """
    content = {
        "format": FORMAT,
        "family": family,
        "num_stages": num_stages,
        "size": list(size),
        "tasks": {name: json_value(entry) for name, entry in entries.items()},
    }
    _parse(content, os.fspath(path))
    text = json.dumps(content, indent=1, allow_nan=False)
    # Rows of numbers on one line, for whoever reads the file; no text in JSON has a line break within.
    text = re.sub(r"\[\n[\d\s.,e+-]+\]", lambda row: "[" + " ".join(row[0][1:-1].split()) + "]", text)
    write_atomically(path, text + "\n")


def load_topologies(path: str | os.PathLike[str]) -> TopologyFile:
    """Read and validate a ``topologies.json`` or a ``front.json``.

    Raises FileNotFoundError if there is none, ValueError naming the file, the key, what was found and what is
    allowed if its content is not what it should be.
    """
    return _parse(read_json_object(path), os.fspath(path))


def find_topology(
    file: TopologyFile,
    tasks: str,
    reads: Mapping[str, Collection[str]],
    budget: Mapping[str, float] | None = None,
    family: str | None = None,
) -> Topology:
    """Return the topology of a task of a file, or the joint one of several (`joint_topology`).

    Args:
        tasks: their names with a plus between, such as "cls+det".
        reads: the paths that each head of the model reads, by its task's name; a topology found for one of these is for
            that head, another one for all of them.
        budget, family: as `TopologyFile.task` has them.

    Raises:
        InputError: as `TopologyFile.task`; or there is a budget for the networks of several tasks.
    """
    names = tasks.split("+")
    if budget and len(names) > 1:
        raise InputError(
            f"{file.path}: a budget for the networks of {', '.join(names)}, allowed: for one task's"
        )
    every = tuple(dict.fromkeys(path for paths in reads.values() for path in paths))
    outputs = {name: reads.get(name, every) if len(names) > 1 else every for name in names}
    topologies = {name: file.task(name, budget, family, outputs[name]).topology for name in names}
    return joint_topology(topologies, outputs)


def _parse(content: dict[str, Any], path: str) -> TopologyFile:
    try:
        require(content, "format", lambda value: value == FORMAT, str(FORMAT))
        family = require(content, "family", lambda value: value and isinstance(value, str), "a family's name")
        stages = require(
            content,
            "num_stages",
            lambda value: _is_count(value, MOST_STAGES),
            f"a count of 1 to {MOST_STAGES}",
        )
        size = require(content, "size", _is_size, f"[height, width] of 1 to {MOST_PIXELS} pixels")
        tasks = require(
            content, "tasks", lambda value: value and _is_object(value), "an object with at least one task"
        )
        entries, fronts = {}, {}
        for name in tasks:
            given = require(tasks, name, _is_object, "an object", "tasks.")
            if "front" in given:
                fronts[name] = _parse_front(given, f"tasks.{name}.", stages)
            entries[name] = (
                fronts[name][0] if name in fronts else _parse_entry(given, f"tasks.{name}.", stages)
            )
        tables = _parse_tables(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return TopologyFile(path, family, stages, tuple(size), entries, fronts, tables)


def _parse_tables(content: dict[str, Any]) -> dict[str, BlockCosts]:
    tables = require({"tables": {}, **content}, "tables", _is_object, "an object")
    found = {}
    for name in tables:
        table = require(tables, name, _is_object, "an object", "tables.")
        stage0, blocks = (
            require(table, part, _are_costs, f"{NUM_PATHS} numbers of at least 0", f"tables.{name}.")
            for part in ("stage0", "blocks")
        )
        found[name] = BlockCosts("latency", tuple(stage0), tuple(blocks))
    return found


def _parse_front(given: dict[str, Any], group: str, stages: int) -> tuple[TopologyEntry, ...]:
    points = require(given, "front", lambda value: value and isinstance(value, list), "a list", group)
    found = []
    for place, point in enumerate(points):
        where = f"{group}front[{place}]"
        if not _is_object(point):
            raise InputError(f"{where} is {shown(point)}, allowed is an object")
        loss = require(point, "loss", is_number, "a number", f"{where}.")
        costs = require({"costs": {}, **point}, "costs", _is_object, "an object", f"{where}.")
        entry = {
            "outputs": given.get("outputs"),
            "metrics": {},
            **{key: point[key] for key in ("topology", "metrics") if key in point},
            "flops_pruned": costs.get("flops"),
        }
        found.append((loss, _parse_entry(entry, f"{where}.", stages)))
    return tuple(entry for _, entry in sorted(found, key=lambda each: each[0]))


def _parse_entry(given: dict[str, Any], group: str, stages: int) -> TopologyEntry:
    entry = {"metrics": {}, "random": {}, **dict.fromkeys(("probabilities", *NUMBERS)), **given}
    try:
        topology = Topology.from_dict(require(entry, "topology", _is_object, "a topology", group))
    except InputError as error:
        raise InputError(f"{group}topology: {error}") from error
    if (topology.num_stages, topology.num_paths) != (stages, NUM_PATHS):
        raise InputError(
            f"{group}topology is of {topology.num_stages} x {topology.num_paths} blocks, allowed is {stages} stages, "
            f"as num_stages says, of {NUM_PATHS} paths"
        )
    outputs = require(
        entry,
        "outputs",
        lambda value: value and isinstance(value, list) and all(output in PATHS for output in value),
        f"a list of {', '.join(PATHS)}",
        group,
    )
    numbers = {
        key: require(
            entry,
            key,
            lambda value: _is_number_or_null(value) and (value or 0) >= 0,
            "a number of at least 0",
            group,
        )
        for key in NUMBERS
    }
    shared = {"group": [], **entry}
    require(shared, "group", _is_texts, "a list of tasks' names", group)
    metrics, random = (require(entry, key, _is_object, "an object", group) for key in ("metrics", "random"))
    for key in metrics:
        require(metrics, key, _is_number_or_null, "a number or null", f"{group}metrics.")
    shape = f"{stages} x {NUM_PATHS} numbers from 0 to 1, as the topology"
    probabilities = require(entry, "probabilities", lambda value: _are_shares(value, stages), shape, group)
    return TopologyEntry(
        topology=topology,
        outputs=tuple(outputs),
        probabilities=probabilities and tuple(tuple(map(float, row)) for row in probabilities),
        group=tuple(shared["group"]),
        metrics=metrics,
        random=random,
        **numbers,
    )


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side, MOST_PIXELS) for side in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def _are_costs(value: Any) -> bool:
    return isinstance(value, list) and len(value) == NUM_PATHS and all(is_number(v) and v >= 0 for v in value)


def _are_shares(value: Any, stages: int) -> bool:
    """Return whether a value is nothing, or a row of a number in [0, 1] for each path, for each stage."""
    if value is None:
        return True
    rows = isinstance(value, list) and len(value) == stages and all(isinstance(row, list) for row in value)
    return rows and all(
        len(row) == NUM_PATHS and all(is_number(share) and 0 <= share <= 1 for share in row) for row in value
    )
