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
from d2go_fbnetv5.arch.families import NUM_PATHS
from d2go_fbnetv5.arch.topology import MOST_STAGES, Topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import is_number, json_value
from d2go_fbnetv5.utils.text_files import read_json

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
    return _parse(read_json(path), os.fspath(path))


def _parse(content: Any, path: str) -> TopologyFile:
    _require(isinstance(content, dict), path, "the top level", _kind(content), "an object")
    _require(content.get("format") == FORMAT, path, "'format'", content.get("format"), FORMAT)
    family = content.get("family")
    _require(isinstance(family, str) and family != "", path, "'family'", family, "a family's name")
    stages = content.get("num_stages")
    good_stages = _is_count(stages) and 0 < stages <= MOST_STAGES
    _require(good_stages, path, "'num_stages'", stages, f"an integer of 1 to {MOST_STAGES}")
    size = content.get("size")
    good_size = (
        isinstance(size, list) and len(size) == 2 and all(_is_count(x) and 0 < x <= MOST_PIXELS for x in size)
    )
    _require(good_size, path, "'size'", size, f"[height, width] of 1 to {MOST_PIXELS} pixels")
    tasks = content.get("tasks")
    _require(
        isinstance(tasks, dict) and tasks, path, "'tasks'", _kind(tasks), "an object with at least one task"
    )
    entries = {name: _parse_entry(entry, stages, path, f"tasks.{name}") for name, entry in tasks.items()}
    return TopologyFile(path=path, family=family, num_stages=stages, size=tuple(size), tasks=entries)


def _parse_entry(entry: Any, stages: int, path: str, key: str) -> TopologyEntry:
    _require(isinstance(entry, dict), path, f"'{key}'", _kind(entry), "an object")
    _require("topology" in entry, path, f"'{key}.topology'", "nothing", "a topology")
    try:
        topology = Topology.from_dict(entry["topology"])
    except InputError as error:
        raise InputError(f"{path}: '{key}.topology' is not a topology: {error}") from error
    found = f"{topology.num_stages} x {topology.num_paths}"
    _require(
        topology.num_stages == stages,
        path,
        f"'{key}.topology'",
        f"{found} (stages x paths)",
        f"{stages} stages, as 'num_stages' says",
    )
    _require(topology.num_paths == NUM_PATHS, path, f"'{key}.topology'", found, f"{NUM_PATHS} paths")
    outputs = entry.get("outputs")
    allowed = [f"path{p}" for p in range(topology.num_paths)]
    good_outputs = isinstance(outputs, list) and outputs and all(output in allowed for output in outputs)
    _require(good_outputs, path, f"'{key}.outputs'", outputs, f"a list of {', '.join(allowed)}")
    numbers = {}
    for name in NUMBERS:
        value = entry.get(name)
        good = value is None or (is_number(value) and value >= 0)
        _require(good, path, f"'{key}.{name}'", value, "a number of at least 0")
        numbers[name] = value
    for name in ("metrics", "random"):
        value = entry.get(name, {})
        _require(isinstance(value, dict), path, f"'{key}.{name}'", _kind(value), "an object")
    for name, value in entry.get("metrics", {}).items():
        _require(
            value is None or is_number(value), path, f"'{key}.metrics.{name}'", value, "a number or null"
        )
    return TopologyEntry(
        topology=topology,
        outputs=tuple(outputs),
        probabilities=_parse_probabilities(
            entry.get("probabilities"), topology, path, f"{key}.probabilities"
        ),
        metrics=entry.get("metrics", {}),
        random=entry.get("random", {}),
        **numbers,
    )


def _parse_probabilities(
    value: Any, topology: Topology, path: str, key: str
) -> tuple[tuple[float, ...], ...] | None:
    if value is None:
        return None
    shape = f"{topology.num_stages} x {topology.num_paths} (stages x paths), as the topology"
    good_shape = (
        isinstance(value, list)
        and len(value) == topology.num_stages
        and all(isinstance(row, list) and len(row) == topology.num_paths for row in value)
    )
    _require(good_shape, path, f"'{key}'", _shape(value), shape)
    wrong = [p for row in value for p in row if not (is_number(p) and 0 <= p <= 1)]
    _require(not wrong, path, f"'{key}'", wrong[0] if wrong else None, "numbers from 0 to 1")
    return tuple(tuple(float(p) for p in row) for row in value)


def _require(condition: Any, path: str, key: str, found: Any, allowed: Any) -> None:
    if not condition:
        text = found if isinstance(found, str) else repr(found)
        raise InputError(f"{path}: {key} is {text[:100]}; expected {allowed}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "missing"}
    return names.get(type(value), repr(value))


def _shape(value: Any) -> str:
    if not isinstance(value, list):
        return _kind(value)
    widths = sorted({len(row) if isinstance(row, list) else 0 for row in value})
    return f"{len(value)} x {' or '.join(map(str, widths))}"
