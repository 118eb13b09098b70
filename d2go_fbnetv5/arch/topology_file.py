"""``topologies.json``: the topologies a search found, with all that later steps need to build and cost them.

    {"format": 1, "family": "A", "num_stages": 7, "size": [224, 224],
     "tasks": {"det": {"topology": {...}, "outputs": ["path2"], "probabilities": [[...]], "flops": 1.2e9, ...}}}

Only ``topology`` and ``outputs`` are required of a task, so the file can also be written by hand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from d2go_fbnetv5.arch.cost import MOST_PIXELS
from d2go_fbnetv5.arch.families import NUM_PATHS, PATHS
from d2go_fbnetv5.arch.topology import MOST_STAGES, Topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import is_number, json_value
from d2go_fbnetv5.utils.options import require
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
    metrics: dict[str, float | None] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)  # the random topologies it was compared with


@dataclass(frozen=True)
class TopologyFile:
    """The content of a ``topologies.json``."""

    path: str
    family: str
    num_stages: int
    size: tuple[int, int]  # (height, width) in pixels at which the costs were counted
    tasks: dict[str, TopologyEntry]

    def task(self, name: str) -> TopologyEntry:
        """Return the entry of a task; a task that the file lacks is a ValueError naming those it has."""
        if name not in self.tasks:
            raise InputError(f"{self.path}: no task {name!r}; available: {', '.join(self.tasks)}")
        return self.tasks[name]


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
    """Read and validate a topology file.

    Raises FileNotFoundError if there is none, ValueError naming the file, the key, what was found and what is
    allowed if its content is not what it should be.
    """
    return _parse(read_json_object(path), os.fspath(path))


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
        entries = {name: _parse_entry(tasks, name, stages) for name in tasks}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return TopologyFile(path=path, family=family, num_stages=stages, size=tuple(size), tasks=entries)


def _parse_entry(tasks: dict[str, Any], name: str, stages: int) -> TopologyEntry:
    group = f"tasks.{name}."
    given = require(tasks, name, _is_object, "an object", "tasks.")
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
    metrics, random = (require(entry, key, _is_object, "an object", group) for key in ("metrics", "random"))
    for key in metrics:
        require(metrics, key, _is_number_or_null, "a number or null", f"{group}metrics.")
    shape = f"{stages} x {NUM_PATHS} numbers from 0 to 1, as the topology"
    probabilities = require(entry, "probabilities", lambda value: _are_shares(value, stages), shape, group)
    return TopologyEntry(
        topology=topology,
        outputs=tuple(outputs),
        probabilities=probabilities and tuple(tuple(map(float, row)) for row in probabilities),
        metrics=metrics,
        random=random,
        **numbers,
    )


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side, MOST_PIXELS) for side in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def _are_shares(value: Any, stages: int) -> bool:
    """Return whether a value is nothing, or a row of a number in [0, 1] for each path, for each stage."""
    if value is None:
        return True
    rows = isinstance(value, list) and len(value) == stages and all(isinstance(row, list) for row in value)
    return rows and all(
        len(row) == NUM_PATHS and all(is_number(share) and 0 <= share <= 1 for share in row) for row in value
    )
