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

from d2go_fbnetv5.engine.distributed import is_main
from d2go_fbnetv5.engine.nonfinite import first_nonfinite
from d2go_fbnetv5.utils.errors import InputError, NonFiniteError
from d2go_fbnetv5.utils.files import replacing, write_atomically

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_(\d{7,})\.pth$")


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

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing is written.
        """
        bad = first_nonfinite(self.model)
        if bad is not None:
            raise NonFiniteError(
                f"training stopped at iteration {iteration}: the weight {bad} is not finite; "
                "the last checkpoint is from before that"
            )
        self.save("model_final" if final else f"model_{iteration:07d}", iteration=iteration)
        if self.save_to_disk:
            for old in self._numbered()[self.keep :]:
                old.unlink(missing_ok=True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth under another name first, so that a half-written file is never taken for a checkpoint."""
        if not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        data |= {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        with replacing(path) as temporary:
            torch.save(data, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def resume(self) -> int | None:
        """Load the newest checkpoint that can be read.

        Returns:
            the iteration after which it was written, None where the folder has no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none can be read.
        """
        candidates = self.candidates()
        for path in candidates:
            try:
                state = self._load_file(str(path))
                iteration = int(state["iteration"])
            except Exception as error:  # a damaged file fails in many ways, in zip, pickle or torch
                logger.warning("%s cannot be read (%s); trying the one before", path, _first_line(error))
                continue
            self._restore(path, state)
            logger.info("resumed from %s, after iteration %d", path, iteration)
            return iteration
        if candidates:
            raise InputError(f"{self.save_dir}: none of its {len(candidates)} checkpoints can be read")
        return None

    def candidates(self) -> list[Path]:
        """The checkpoints of the folder in the order to try them: the one written last, then backwards."""
        final = Path(self.save_dir, FINAL)
        files = self._numbered() + ([final] if final.is_file() else [])
        last = Path(self.get_checkpoint_file()) if self.has_checkpoint() else None
        if last in files:
            files.remove(last)
            files.insert(0, last)
        return files

    def load_weights(self, path: str, key: str = "MODEL.WEIGHTS", prefixes: tuple[str, ...] = ("",)) -> None:
        """Load the model's weights alone from a checkpoint or a bare state dict.

        Args:
            key: that named the file.
            prefixes: only weights whose names begin with one of them are loaded.

        Raises:
            FileNotFoundError, ValueError: no such file, or none of its weights fits this model.
        """
        path = os.path.expanduser(path)
        if not self.path_manager.isfile(path):
            raise FileNotFoundError(f"{key} names {path}, which does not exist")
        try:
            state = self._load_file(self.path_manager.get_local_path(path))
            weights = {k: v for k, v in state.get("model", state).items() if k.startswith(prefixes)}
        except Exception as error:
            raise InputError(f"{key}: {path} is not a checkpoint ({_first_line(error)})") from error
        ours = self.model.state_dict()
        if not any(
            isinstance(v, torch.Tensor) and k in ours and ours[k].shape == v.shape for k, v in weights.items()
        ):
            raise InputError(f"{key}: no weight of {path} fits this model")
        self._log_incompatible_keys(self._load_model({"model": weights}))

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            for key, thing in self.checkpointables.items():
                if key not in state:
                    raise InputError(f"it has no {key!r}")
                thing.load_state_dict(state[key])
        except (RuntimeError, ValueError, KeyError) as error:
            message = " ".join(str(error).split())
            raise InputError(
                f"{path} was written with another configuration ({message[:300]}); resume with the same one"
            ) from error

    def _load_file(self, f: str) -> dict[str, Any]:
        state = torch.load(f, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise InputError(f"holds a {type(state).__name__}, not a checkpoint")
        return state

    def _numbered(self) -> list[Path]:
        files = {
            int(m[1]): p for p in Path(self.save_dir).glob("model_*.pth") if (m := _NUMBERED.search(p.name))
        }
        return [files[iteration] for iteration in sorted(files, reverse=True)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
