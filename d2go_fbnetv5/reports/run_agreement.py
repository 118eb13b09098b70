"""Tells whether several searches, such as those of different seeds, found the same."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.reports.history import METRICS_FILE, read_history, series
from d2go_fbnetv5.utils.errors import InputError


@dataclass(frozen=True)
class PairAgreement:
    """Two searches' agreement about one task.

    Attributes:
        first, second: names of the runs.
        equal: share of the blocks that both keep or both leave out, in [0, 1].
        by_chance: that share for independent decisions that keep as many blocks as each run does.
        correlation: Pearson's, of the probabilities of all blocks; NaN where those of a run are all the same.
    """

    first: str
    second: str
    equal: float
    by_chance: float
    correlation: float


@dataclass(frozen=True)
class TaskAgreement:
    """Several searches' agreement about one task.

    Attributes:
        probabilities: R x S x P, of the runs in their order.
    """

    task: str
    runs: tuple[str, ...]
    probabilities: Tensor

    @property
    def pairs(self) -> list[PairAgreement]:
        """Return a value for every two runs."""
        return [
            _pair(self.runs[a], self.runs[b], self.probabilities[a], self.probabilities[b])
            for a, b in combinations(range(len(self.runs)), 2)
        ]

    @property
    def mean(self) -> PairAgreement:
        """Over the pairs; of correlations over those that there are."""
        pairs = self.pairs
        known = [pair.correlation for pair in pairs if math.isfinite(pair.correlation)]
        return PairAgreement(
            "mean",
            "",
            sum(pair.equal for pair in pairs) / len(pairs),
            sum(pair.by_chance for pair in pairs) / len(pairs),
            sum(known) / len(known) if known else math.nan,
        )


def read_agreement(
    folders: Sequence[str | os.PathLike[str]], tasks: Sequence[str] | None = None
) -> list[TaskAgreement]:
    """Compare searches by what is in their output folders.

    Args:
        folders: two or more; of a search that has not ended, the last probabilities in its history count.
        tasks: which ones; by default those that all the runs have, in the order of the first one.

    Raises:
        ValueError: fewer than two runs; one without probabilities; a task that a run has not; no task in common; or
            different numbers of stages and paths.
    """
    if len(folders) < 2:
        raise InputError(f"agreement is between two or more runs, found {len(folders)}")
    runs = run_names(folders)
    found = [_probabilities(Path(folder)) for folder in folders]
    common = [task for task in found[0] if all(task in probs for probs in found)]
    for folder, probs in zip(folders, found, strict=True):
        missing = [task for task in tasks or () if task not in probs]
        if missing:
            raise InputError(f"{folder}: no task {missing[0]!r}; available: {', '.join(probs)}")
    chosen = list(tasks or common)
    if not chosen:
        raise InputError(f"{', '.join(map(str, folders))}: no task in common")
    agreements = []
    for task in chosen:
        sizes = {tuple(probs[task].shape) for probs in found}
        if len(sizes) > 1:
            raise InputError(
                f"{task}: runs of one search space are needed, found stages x paths of {sorted(sizes)}"
            )
        agreements.append(TaskAgreement(task, runs, torch.stack([probs[task] for probs in found])))
    return agreements


def run_names(folders: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return the folders' own names, or as much of their paths as tells them apart."""
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = tuple("/".join(path.parts[-depth:]) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{path.name} ({number})" for number, path in enumerate(paths, start=1))


def _probabilities(folder: Path) -> dict[str, Tensor]:
    """S x P by task."""
    source = folder if folder.is_file() else folder / "topologies.json"
    if source.is_file():
        file = load_topologies(source)
        entries = {task: file.task(task).probabilities for task in file.tasks}
        found = {task: probs for task, probs in entries.items() if probs is not None}
    else:
        history = read_history(folder)
        keys = dict.fromkeys(key for line in history for key in line if key.startswith("probs/"))
        found = {key[6:]: series(history, key)[1][-1] for key in keys}
    if not found:
        raise InputError(
            f"{folder}: no probabilities of a search, neither topologies.json nor {METRICS_FILE}"
        )
    return {task: torch.tensor(probs, dtype=torch.float64) for task, probs in found.items()}


def _pair(first: str, second: str, a: Tensor, b: Tensor) -> PairAgreement:
    kept_a, kept_b = a > 0.5, b > 0.5
    rate_a, rate_b = float(kept_a.double().mean()), float(kept_b.double().mean())
    centred_a, centred_b = a - a.mean(), b - b.mean()
    scale = float(centred_a.norm() * centred_b.norm())
    return PairAgreement(
        first,
        second,
        float((kept_a == kept_b).double().mean()),
        rate_a * rate_b + (1 - rate_a) * (1 - rate_b),
        float((centred_a * centred_b).sum()) / scale if scale > 1e-12 else math.nan,
    )
