"""Checkpoints of a run: written whole or not at all, read without executing anything, the last few kept."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from d2go_fbnetv5.engine.keys import MOST_ITERATIONS
from d2go_fbnetv5.engine.nonfinite import first_nonfinite
from d2go_fbnetv5.utils.checkpoints import read_tensors, save_tensors
from d2go_fbnetv5.utils.errors import InputError, NonFiniteError, sentence
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.ranks import average_batch_norm, is_main

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"
_ADDED_LATER = ("means", "classes")  # checkpoints of older versions lack them
_NUMBERED = re.compile(r"model_(\d{7,})\.pth$")


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints of a run's folder in the order to try them: the one written last, then backwards."""
    final, tag = Path(folder, FINAL), Path(folder, "last_checkpoint")
    files = _numbered(folder) + ([final] if final.is_file() else [])
    last = tag.with_name(tag.read_bytes().decode(errors="replace").strip() or ".") if tag.is_file() else None
    if last in files:
        files.remove(last)
        files.insert(0, last)
    return files


def _numbered(folder: str | os.PathLike[str]) -> list[Path]:
    files = {int(m[1]): p for p in Path(folder).glob("model_*.pth") if (m := _NUMBERED.search(p.name))}
    return [files[iteration] for iteration in sorted(files, reverse=True)]


class RunCheckpointer(Checkpointer):
    """fvcore's Checkpointer for the folder of one run.

    Args:
        model: the model, perhaps in DistributedDataParallel.
        folder: OUTPUT_DIR.
        keep: how many of the newest numbered checkpoints stay, >= 1.
        checkpointables: other things with `state_dict` and `load_state_dict`, such as the optimizer.
    """

    def __init__(self, model: nn.Module, folder: str | Path, keep: int = 3, **checkpointables: Any) -> None:
        super().__init__(model, str(folder), save_to_disk=is_main(), **checkpointables)
        self.keep = keep
        self.logger = logger

    def save_iteration(self, iteration: int, final: bool = False) -> None:
        """Write the state after the step `iteration` (process 0) and forget the oldest beyond `keep`.

        Every process must call it: what is stored has seen the images of all of them.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing is written.
        """
        average_batch_norm(*self._modules())
        bad = first_nonfinite(self.model)
        if bad is not None:
            raise NonFiniteError(
                f"training stopped at iteration {iteration}: the weight {bad} is not finite; "
                "the last checkpoint is from before that"
            )
        self.save("model_final" if final else f"model_{iteration:07d}", iteration=iteration)
        if self.save_to_disk:
            for old in _numbered(self.save_dir)[self.keep :]:
                old.unlink(missing_ok=True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth under another name first, so that a half-written file is never taken for a checkpoint."""
        data = {"model": self.model.state_dict(), **kwargs}
        data |= {
            key: thing.state_dict() for key, thing in self.checkpointables.items()
        }  # may ask other processes
        if not self.save_to_disk:
            return
        path = Path(self.save_dir, f"{name}.pth")
        save_tensors(path, data)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def resume(self) -> int | None:
        """Load the newest checkpoint that can be used.

        Returns:
            the iteration after which it was written, None where the folder has no checkpoint.

        Raises:
            InputError: there are checkpoints, but none is whole, or one is of another configuration.
        """
        candidates, reason = list_checkpoints(self.save_dir), ""
        for path in candidates:
            try:
                state = self._read(path)
            except InputError as error:
                reason = str(error)
                logger.warning("%s cannot be read: %s; trying the one before", path.name, reason)
                continue
            self._restore(path, state)
            bad = next(filter(None, map(first_nonfinite, self._modules())), None)
            if bad is not None:
                reason = f"{path}: the weight {bad} is not finite"
                logger.warning("%s; trying the one before", reason)
                continue
            logger.info("resumed from %s, after iteration %d", path, state["iteration"])
            return state["iteration"]
        if candidates:
            raise InputError(
                f"{self.save_dir}: none of its {len(candidates)} checkpoints can be read ({reason})"
            )
        return None

    def _read(self, path: Path) -> Mapping[str, Any]:
        """Return the content of a checkpoint that is whole.

        Raises:
            InputError: it is damaged, or no checkpoint of a run.
        """
        state = read_tensors(path)
        if not isinstance(state, Mapping) or type(state.get("iteration")) is not int:
            raise InputError(f"{path} is no checkpoint of a run")
        if not 0 <= state["iteration"] < MOST_ITERATIONS:
            raise InputError(
                f"{path}: its iteration is {state['iteration']}, allowed: 0 to {MOST_ITERATIONS - 1}"
            )
        for key in ("model", *self.checkpointables):
            if not isinstance(state.get(key, {}), Mapping):
                raise InputError(f"{path}: {key!r} is {type(state[key]).__name__}, not a mapping")
        return state

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        things = {"model": self.model, **self.checkpointables}
        # Of other classes their names say more than the shapes of weights.
        for key, thing in sorted(things.items(), key=lambda item: item[0] != "classes"):
            if key not in state and key in _ADDED_LATER:
                continue
            try:
                thing.load_state_dict(state[key])
            except InputError:
                raise
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                # torch's own, of names, shapes and groups that are not those of the file
                message = f"it has no {key!r}" if key not in state else f"{key}: {sentence(error)[:300]}"
                raise InputError(
                    f"{path} was written with another configuration ({message}); resume with the same one"
                ) from error

    def _modules(self) -> list[nn.Module]:
        """The model, and its average where there is one."""
        return [
            self.model,
            *(thing for thing in self.checkpointables.values() if isinstance(thing, nn.Module)),
        ]


class OptimizerState:
    """An optimizer's momenta for a checkpoint; rates and decays are the configuration's, also after a resume.

    Args:
        optimizer: new, with the groups of the run's configuration.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the momenta; a ValueError where the groups are of another kind of optimizer or other weights."""
        configured = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        for ours, theirs in zip(configured, state["param_groups"], strict=True):
            if ours.keys() != theirs.keys() - {"params"} or ours.get("name") != theirs.get("name"):
                raise ValueError("the optimizer is another, or has other groups of weights")
        self.optimizer.load_state_dict(dict(state))
        for group, options in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(options)
