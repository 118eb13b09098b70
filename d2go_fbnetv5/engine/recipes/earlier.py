"""``earlier_tasks.json``: the tasks of the finished search that SEARCH.FROM names, to which a run adds others.

It lies in the run's folder from before the first step on, and beside it ``topologies.json`` has what was found for
these tasks, so that the run needs the other search's folder to start and not to go on.

    {"format": 1, "heads": {"cls": {options}, "seg": {options}}, "labels": {"class_names": [...], ...},
     "metrics": {"cls": 0.9, "seg": 0.7}}

``metrics`` are what the tasks' networks had before the first step; where nothing of them changes there are none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch.topology_file import TopologyFile, load_topologies
from d2go_fbnetv5.engine.checkpoint import FINAL, list_checkpoints
from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.continuing import search_config
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.options import require, shown
from d2go_fbnetv5.utils.rules import get
from d2go_fbnetv5.utils.text_files import read_json_object

EARLIER_FILE, TOPOLOGIES = "earlier_tasks.json", "topologies.json"
_FORMAT = 1
# What a search and the tasks that are added to it have in common, as features are of these.
_COMMON = ("MODEL.FBNETV5.FAMILY", "MODEL.FBNETV5.NUM_STAGES", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


@dataclass(frozen=True)
class EarlierTasks:
    """The tasks of a finished search.

    Attributes:
        heads: the options of each task's head, in the order of their probabilities.
        info: what they label.
        found: what was found for them.
        folder: that holds ``topologies.json``, and where a run starts also the search's last checkpoint.
        metrics: the first metric of each before the first step, where their weights follow (SEARCH.ADAPT).
    """

    heads: dict[str, dict[str, Any]]
    info: DatasetInfo
    found: TopologyFile
    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Return the path of the finished search's weights."""
        return self.folder / FINAL

    def with_labels_of(self, info: DatasetInfo) -> DatasetInfo:
        """Return what the earlier tasks and the data at hand label together.

        Raises:
            InputError: both label something, and not the same.
        """
        merged: dict[str, Any] = {}
        for kind in fields(DatasetInfo):
            then, now = getattr(self.info, kind.name), getattr(info, kind.name)
            if then not in (kind.default, now) and now != kind.default:
                raise InputError(
                    f"DATASETS.TRAIN: its {kind.name} are {shown(now)}, allowed: those of the search in SEARCH.FROM, "
                    f"{shown(then)}, or none"
                )
            merged[kind.name] = now if then == kind.default else then
        return DatasetInfo(**merged)

    def write(self, folder: Path) -> None:
        """Write EARLIER_FILE and TOPOLOGIES into a folder."""
        labels = {kind.name: getattr(self.info, kind.name) for kind in fields(DatasetInfo)}
        content = {"format": _FORMAT, "heads": self.heads, "labels": labels, "metrics": self.metrics}
        write_atomically(folder / TOPOLOGIES, Path(self.found.path).read_bytes())
        write_atomically(folder / EARLIER_FILE, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> EarlierTasks:
        """Read them from the folder of a search that has them.

        Raises:
            InputError: a file is damaged; names it and the key.
        """
        path = folder / EARLIER_FILE
        content = read_json_object(path)
        try:
            require(content, "format", lambda value: value == _FORMAT, f"{_FORMAT}, which this version reads")
            heads = require(content, "heads", _is_heads, "an object of options for each of one task or more")
            labels = require(content, "labels", lambda value: isinstance(value, dict), "an object")
            metrics = content.get("metrics", {})
            require({"metrics": metrics}, "metrics", _is_metrics, "an object of one number for each task")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        known: dict[str, Any] = {
            kind.name: tuple(value) if isinstance(value := labels[kind.name], list) else value
            for kind in fields(DatasetInfo)
            if kind.name in labels
        }
        return cls(heads, DatasetInfo(**known), load_topologies(folder / TOPOLOGIES), folder, metrics)

    @classmethod
    def of_search(cls, cfg: CfgNode) -> EarlierTasks:
        """Read them from the folder of a finished search.

        Args:
            cfg: the search's, whose OUTPUT_DIR is the folder.

        Raises:
            InputError: it has not ended.
        """
        folder = Path(cfg.OUTPUT_DIR)
        if not (folder / FINAL).is_file() or not (folder / TOPOLOGIES).is_file():
            raise InputError(
                f"the search in {folder} has not ended, allowed: one that has (--resume ends it)"
            )
        given = as_dict(cfg.SEARCH.HEADS)
        heads = {name: given.get(name, {}) for name in cfg.SEARCH.TASKS}
        classes = read_tensors(folder / FINAL).get("classes", {})
        labels: dict[str, Any] = {kind: tuple(names) for kind, names in classes.items()}
        info = DatasetInfo(**labels)
        if (folder / EARLIER_FILE).is_file():
            before = cls.read(folder)
            heads, info = before.heads | heads, before.with_labels_of(info)
        found = load_topologies(folder / TOPOLOGIES)
        missing = [name for name in heads if name not in found.tasks]
        if missing:
            raise InputError(f"{found.path}: no task {missing[0]!r}; --eval-only writes the file anew")
        return cls(heads, info, found, folder)


def earlier_tasks(cfg: CfgNode) -> EarlierTasks | None:
    """Return the tasks that SEARCH.TASKS are added to; None where SEARCH.FROM is empty.

    A run that goes on has them in its own folder.

    Raises:
        FileNotFoundError, InputError: SEARCH.FROM is no finished search, or one that these tasks cannot be added to.
    """
    if not cfg.SEARCH.FROM:
        return None
    own = Path(cfg.OUTPUT_DIR)
    if list_checkpoints(own) and (own / EARLIER_FILE).is_file():
        return EarlierTasks.read(own)
    folder = Path(cfg.SEARCH.FROM)
    try:
        searched = search_config(folder)
        earlier = EarlierTasks.of_search(searched)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"SEARCH.FROM: {error}") from error
    for key in _COMMON:
        if get(cfg, key) != get(searched, key):
            raise InputError(
                f"{key} is {get(cfg, key)!r}, allowed with SEARCH.FROM {folder}: {get(searched, key)!r}, as there"
            )
    again = [name for name in cfg.SEARCH.TASKS if name in earlier.heads]
    if again:
        raise InputError(
            f"SEARCH.TASKS has {again[0]!r}, which the search in SEARCH.FROM {folder} has already; allowed: others "
            f"than {', '.join(earlier.heads)}"
        )
    return earlier


def _is_heads(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(head, dict) for head in value.values())


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(metric) for metric in value.values())
