"""Weights of Detectron2's models: all of them or an error, and no pickle that runs code."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from d2go_fbnetv5.pseudo_labels.teachers.common import require_finite
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError

# All that a pickle of arrays, strings, lists and dicts needs.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


def load_all_weights(model: nn.Module, path: str, what: str) -> None:
    """A .pth or .pkl file's weights into a model, which Detectron2 would start at random where the file lacks some.

    Args:
        path: a file, or an address that Detectron2 knows.
        what: the model's name, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or lacks a weight of the model; the message names it.
    """
    from detectron2.utils.file_io import PathManager

    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"{what}: weights {path} do not exist")
    try:
        content = load_arrays(local) if local.endswith(".pkl") else read_tensors(local)
        state = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(state, dict):
            raise InputError("no named tensors, nor any under the key 'model'")
        for name, value in state.items():  # in place, for the sake of the versions that a state_dict may have
            state[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        state = _with_versions(model, state)
        missing = model.load_state_dict(state, strict=False).missing_keys
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{what}: weights {path}: {error}") from error
    missing = [name for name in missing if name not in ("pixel_mean", "pixel_std")]  # of the configuration
    if missing:
        raise InputError(
            f"{what}: weights {path} lack {len(missing)} of the model's {len(model.state_dict())}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    require_finite(model, what)


def _with_versions(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Weights without versions, which a model may take for old ones and rename, are new if all their names are."""
    ours: Any = model.state_dict()
    if hasattr(state, "_metadata") or not ours.keys() <= state.keys():
        return state
    current: Any = OrderedDict(state)
    current._metadata = ours._metadata
    return current


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Load the content of a pickle of numpy arrays and plain values.

    Raises:
        ValueError: it asks for anything else, or is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _Unpickler(file, encoding="latin1").load()
        except (
            pickle.UnpicklingError,
            ArithmeticError,
            AttributeError,
            EOFError,
            LookupError,
            TypeError,
        ) as error:
            raise InputError(f"no pickle of arrays ({error})") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
