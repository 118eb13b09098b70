"""Compares a run that goes on, or is evaluated again, with what it was, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.keys import OPEN_GROUPS
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

CONFIG_FILE = "config.yaml"
_ABSENT = object()
_ALWAYS = {"CUDNN_BENCHMARK", "DATALOADER", "INPUT", "MODEL", "SEARCH", "SOLVER", "TEST", "VERSION"}

# Keys, or groups of keys, that --resume may change. Each takes effect as a whole, from the first new step on: a rate, a
# decay or a momentum too, as a checkpoint gives back the optimizer's state and not its options. Data may have moved;
# their class names are compared, see `Classes`, and so are the names and shapes of the network's weights. All other
# keys say what the run is.
_MAY_CHANGE = (
    "CUDNN_BENCHMARK",
    "DATALOADER",
    "DATASETS",
    "DISTRIBUTED",
    "FBNETV5_DATA",
    "FLOAT32_PRECISION",
    "IMPORTS",
    "INPUT",
    "MODEL.DDP_FIND_UNUSED_PARAMETERS",
    "MODEL.DEVICE",
    "MODEL.FBNETV5.BUDGET",
    "MODEL.FBNETV5.COMPILE",
    "MODEL.FBNETV5.DISTILLATION",
    "MODEL.FBNETV5.TOPOLOGY",
    "MODEL.FBNETV5.TOPOLOGY_TASK",
    "MODEL_EMA.DECAY",
    "MODEL_EMA.INCLUDE_BUFFER",
    "OUTPUT_DIR",
    "SEARCH.ADAPT.BAND",
    "SEARCH.EVAL",
    "SOLVER",
    "TEST",
    "VERSION",
    "WRITER_PERIOD",
)
_MAY_NOT = (
    "SOLVER.AMP",
    "SOLVER.GRAD_ACCUM",
    "SOLVER.LR_MULTIPLIER_OVERWRITE",
    "SOLVER.OPTIMIZER",
    "SOLVER.REFERENCE_WORLD_SIZE",
)
# With --eval-only, training's keys do not matter; these say what is evaluated.
_OF_THE_MODEL = (
    "MODEL.FBNETV5.FAMILY",
    "MODEL.FBNETV5.HEAD",
    "MODEL.FBNETV5.NUM_STAGES",
    "MODEL.META_ARCHITECTURE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL_EMA.ENABLED",
    "SEARCH.ADAPT.ENABLED",
    "SEARCH.ALGORITHM",
    "SEARCH.FROM",
    "SEARCH.HEADS",
    "SEARCH.TASKS",
)


def search_config(folder: Path) -> CfgNode:
    """Return the configuration that a search has left in its folder, with that folder as OUTPUT_DIR.

    Raises:
        FileNotFoundError: there is no run; InputError: it is no search.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no {CONFIG_FILE}")
    cfg = load_cfg(folder / CONFIG_FILE, ["OUTPUT_DIR", str(folder)])
    if cfg.MODEL.META_ARCHITECTURE != "MultitaskSearch":
        raise InputError(
            f"{folder} is a run of {cfg.MODEL.META_ARCHITECTURE}, allowed: a search (MultitaskSearch)"
        )
    return cfg


def stored_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the configuration that a run has left in its folder, {} where there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder, CONFIG_FILE)
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it holds no keys and values")
    return values


def is_of_a_run(folder: str | os.PathLike[str]) -> bool:
    """Return whether a run has written the configuration in a folder, or there is none.

    A run's has all keys, also those of another kind of model; one that a person has written builds on defaults.
    """
    try:
        stored = stored_config(folder)
    except InputError:
        return False
    return not Path(folder, CONFIG_FILE).is_file() or stored.keys() >= _ALWAYS


def check_continued(cfg: CfgNode, eval_only: bool) -> dict[str, Any]:
    """Compare a configuration with that of the run in its OUTPUT_DIR.

    Args:
        cfg: scaled to the number of processes, as the stored one is.
        eval_only: the run is evaluated; else it goes on.

    Returns:
        the values that differ and may, by key; none where the folder has no configuration.

    Raises:
        InputError: a key differs that must not; names it, what the run had, and what is asked for.
    """
    option = "--eval-only" if eval_only else "--resume"
    changed: dict[str, Any] = {}
    stored = stored_config(cfg.OUTPUT_DIR)
    if not stored:
        return changed
    now, then = flat(yaml.safe_load(cfg.dump())), flat(stored)
    if not eval_only:
        _check_processes(now, then)
    for key in sorted(now.keys() | then.keys()):
        value, had = now.get(key, _ABSENT), then.get(key, _ABSENT)
        known = _within(key, OPEN_GROUPS)
        if value == had or (_ABSENT in (value, had) and not known):  # a key of another version
            continue
        if key == "SEED" and value < 0:
            continue
        if _is_another_tasks_head(key, now["SEARCH.TASKS"]):
            continue
        if key == "MODEL.WEIGHTS":
            if value and os.path.abspath(value) != os.path.abspath(str(had)):
                raise InputError(
                    f"MODEL.WEIGHTS is {value!r}, allowed with {option}: {had!r}, with which the run in "
                    f"{cfg.OUTPUT_DIR} was started, or nothing, as its own checkpoint is what counts"
                )
            continue
        if key == "SEARCH.FROM" and value and had and os.path.abspath(value) == os.path.abspath(str(had)):
            continue
        if _within(key, _OF_THE_MODEL) or (not eval_only and not _free(key)):
            found, allowed = ("missing" if v is _ABSENT else repr(v) for v in (value, had))
            raise InputError(
                f"{key} is {found}, allowed with {option}: {allowed}, as in the run in {cfg.OUTPUT_DIR}"
            )
        changed[key] = None if value is _ABSENT else value
    return changed


def _is_another_tasks_head(key: str, tasks: Sequence[str]) -> bool:
    """Return whether a key is an option of a head that a search of these tasks lacks: recipes share their heads."""
    return _within(key, ("SEARCH.HEADS",)) and not _within(key, [f"SEARCH.HEADS.{task}" for task in tasks])


def _check_processes(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Iterations that are scaled to another number of processes are not those that the run has counted."""
    key = "SOLVER.REFERENCE_WORLD_SIZE"
    if then.get(key, 0) and now[key] != then[key]:
        raise InputError(
            f"{key} is {now[key]}, allowed with --resume: {then[key]}, as the run in {now['OUTPUT_DIR']} counts its "
            f"iterations for {then[key]} process{'es' if then[key] > 1 else ''}; go on with as many"
        )


def _free(key: str) -> bool:
    return _within(key, _MAY_CHANGE) and not _within(key, _MAY_NOT)


def _within(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested groups by dotted keys; an empty group has none."""
    return dict(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Classes:
    """The names of the classes that a run learns, in its checkpoints."""

    def __init__(self, info: DatasetInfo, data_set: str) -> None:
        self.info, self.data_set = info, data_set

    def state_dict(self) -> dict[str, list[str]]:
        return {kind: list(getattr(self.info, kind)) for kind in DatasetInfo.KINDS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare; an InputError names the first class that is another one."""
        for kind, names in self.state_dict().items():
            had = list(state.get(kind, names))
            if names != had:
                count = next(
                    (i for i, (a, b) in enumerate(zip(names, had, strict=False)) if a != b), len(had)
                )
                found, was = (repr(n[count]) if count < len(n) else "missing" for n in (names, had))
                raise InputError(
                    f"DATASETS.TRAIN {self.data_set}: its {kind} are not those of the run ({len(names)} and "
                    f"{len(had)}; number {count} is {found}, in the run {was}), and a model keeps the classes that it "
                    "has learnt; choose another OUTPUT_DIR"
                )
