"""Trained weights from a file into a model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping

import torch
from torch import Tensor

from d2go_fbnetv5.models.base import SearchedModel
from d2go_fbnetv5.utils.errors import InputError

_SUPERNET = "supernet."  # how a search names its supernet's weights


def load_weights(
    model: SearchedModel, path: str | os.PathLike[str], averaged: bool = False, supernet: bool = False
) -> None:
    """Take over a checkpoint's weights by name; if anything is wrong with them the model stays as it was.

    Args:
        model: is changed in place.
        path: a checkpoint, or a plain ``state_dict``, of a model of the same class.
        averaged: take the averaged weights of a training's checkpoint, its "ema", if there are any.
        supernet: where the model is to be trained, the file may also be of a search or of a supernet of the same
            family. It gives the backbone its weights and leaves the head as it is.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, of a search or a supernet though ``supernet`` is off, or a weight is missing,
            unknown, of another shape or not finite; the message names it.
    """
    state = read_weights(path, averaged)
    where = f"weights {os.fspath(path)!r}"
    searched = {
        name.removeprefix(_SUPERNET): value for name, value in state.items() if name.startswith(_SUPERNET)
    }
    if not searched and any(name.startswith("stage0.") for name in state):
        searched = state
    if searched and not supernet:
        raise InputError(
            f"{where}: a search's or a supernet's, which has no weights for the head of a {type(model).__name__}; "
            "train the model first, with this file as MODEL.WEIGHTS"
        )
    try:
        _require_finite(searched or state)
        if searched:
            model.backbone.load_supernet(searched)
            return
        _require_same(model.state_dict(), state)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    model.load_state_dict(state)


def read_weights(path: str | os.PathLike[str], averaged: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: a ``state_dict``, or what one has under "model" or, averaged, "ema".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds no tensors.
    """
    where = os.fspath(path)
    if not os.path.isfile(where):
        raise FileNotFoundError(f"weights {where!r}: no such file")
    try:
        content = torch.load(where, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise InputError(f"weights {where!r}: not a checkpoint of tensors ({error})") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if averaged and isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping):
        # torch's AveragedModel puts "module." before the names.
        state = {
            name.removeprefix("module."): value
            for name, value in content["ema"].items()
            if name != "n_averaged"
        }
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights {where!r}: found no named tensors, nor any under the key 'model'")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _require_finite(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{name!r} is not finite (NaN or infinity)")


def _require_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    missing = [name for name in ours if name not in theirs]
    unknown = [name for name in theirs if name not in ours]
    if missing or unknown:
        raise InputError(
            f"not of this model: {len(missing)} of its {len(ours)} weights are missing ({_some(missing)}), "
            f"{len(unknown)} are unknown ({_some(unknown)})"
        )
    for name, value in ours.items():
        if theirs[name].shape != value.shape:
            raise InputError(
                f"{name!r} is {tuple(theirs[name].shape)} in the file, {tuple(value.shape)} in the model"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
