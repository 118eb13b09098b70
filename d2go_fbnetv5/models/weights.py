"""Trained weights from a file into a model: all that belongs to it, finite, or an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.models.base import SearchedModel
from d2go_fbnetv5.models.detectron2_names import RPN, from_generalized_rcnn
from d2go_fbnetv5.models.lite_rcnn import LiteRCNN
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

_SUPERNET = "supernet."  # how a search names its supernet's weights
_STAGE0 = f"{_SUPERNET}stage0."
_HEADS = "tasks."
_PROBS = "distribution.probs"
# Of another search, such as the pretraining, neither its probabilities nor how far it came.
SEARCH_WEIGHTS = (_SUPERNET, _HEADS)
_COUNT = "num_batches_tracked"  # of batch norms; nothing depends on it, and other projects' weights lack it


def load_weights(
    model: SearchedModel, path: str | os.PathLike[str], averaged: bool = False, supernet: bool = False
) -> None:
    """Take over a checkpoint's weights by name; if anything is wrong with them the model stays as it was.

    Args:
        model: is changed in place.
        path: a checkpoint, or a plain ``state_dict``, of a model of the same class; of a detector also under
            Detectron2's names.
        averaged: take the averaged weights of a training's checkpoint, if there are any.
        supernet: where the model is to be trained, the file may also be of a search or of a supernet of the same
            family. It gives the backbone its weights and leaves the head as it is.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, of a search or a supernet though ``supernet`` is off, or a weight is missing,
            unknown, of another shape or not finite; the message names it.
    """
    state = _with_supernet(read_weights(path, averaged))
    where = f"weights {os.fspath(path)!r}"
    searched = {
        name.removeprefix(_SUPERNET): value for name, value in state.items() if name.startswith(_SUPERNET)
    }
    if searched and not supernet:
        raise InputError(
            f"{where}: a search's or a supernet's, which has no weights for the head of a {type(model).__name__}; "
            "train the model first, with this file as MODEL.WEIGHTS"
        )
    try:
        _require_finite(searched or state)
        if searched:
            model.backbone.load_supernet(searched)
        else:
            if isinstance(model, LiteRCNN) and any(name.startswith(RPN) for name in state):
                state = from_generalized_rcnn(state)
            load_state(model, state)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def load_search_weights(search: Any, path: str | os.PathLike[str]) -> None:
    """Starts a search from another one's supernet and heads, or from what ``convert_weights`` wrote.

    Stage 0 must be there, and of the searchable blocks all or none. Of a head is taken what has its name and shape, as
    the classes may be others; the log says what starts untrained.

    Args:
        search: with modules ``supernet`` and ``tasks``, the heads by name; is changed in place.
        path: a checkpoint, or the ``state_dict`` of a supernet of the same family and number of stages.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, or a weight of the supernet is missing, unknown, of another shape or not
            finite; the message names it.
    """
    state, ours = read_search_weights(path), search.state_dict()
    theirs = {name: value for name, value in state.items() if name.startswith(_SUPERNET)}
    wanted = [name for name in ours if name.startswith(_SUPERNET)]
    if all(name.startswith(_STAGE0) for name in theirs):
        wanted = [name for name in wanted if name.startswith(_STAGE0)]
    heads = {
        name: value
        for name, value in state.items()
        if name.startswith(_HEADS) and name in ours and ours[name].shape == value.shape
    }
    try:
        _require_same({name: ours[name] for name in wanted}, theirs)
        _require_finite(theirs | heads)
    except InputError as error:
        family, stages = search.supernet.family.name, search.supernet.num_stages
        raise InputError(
            f"{os.fspath(path)!r} is no supernet of family {family} with {stages} stages: {error}"
        ) from error
    search.load_state_dict(theirs | heads, strict=False)
    untrained = [name for name in ours if name.startswith(SEARCH_WEIGHTS) and not name.endswith(_COUNT)]
    untrained = sorted({_part(name) for name in untrained if name not in theirs and name not in heads})
    logger.info(
        "%s: took over %d weights of the supernet and %d of heads; %s",
        os.fspath(path),
        len(theirs),
        len(heads),
        f"there are none for some of {', '.join(untrained)}" if untrained else "all are there",
    )


def load_earlier_search(search: Any, path: str | os.PathLike[str]) -> None:
    """Give a search what a finished one has for its earlier tasks: supernet, heads and probabilities.

    Args:
        search: an `AdditionSearch`; is changed in place.
        path: the last checkpoint of the finished search, whose tasks are the earlier ones in their order.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, or a weight is missing, unknown, of another shape or not finite; the message
            names it.
    """
    state, ours = read_weights(path), search.state_dict()
    heads = [f"{_HEADS}{name}." for name in search.tasks if name not in search.learning]
    parts, probs = (_SUPERNET, *heads), state.get(_PROBS)
    theirs = {name: value for name, value in state.items() if name.startswith(parts)}
    found = search.distribution.probs[: len(heads)]
    try:
        _require_same({name: value for name, value in ours.items() if name.startswith(parts)}, theirs)
        _require_same({_PROBS: found}, {} if probs is None else {_PROBS: probs})
        _require_finite(theirs | {_PROBS: state[_PROBS]})
    except InputError as error:
        raise InputError(f"{os.fspath(path)!r}: {error}") from error
    search.load_state_dict(theirs, strict=False)
    with torch.no_grad():
        found.copy_(state[_PROBS])


def read_search_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights of a search's supernet and heads, without its probabilities and how far it came.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, or holds no supernet.
    """
    state = _with_supernet(read_weights(path))
    if not any(name.startswith(_SUPERNET) for name in state):
        raise InputError(f"{os.fspath(path)!r} holds no supernet")
    return {name: value for name, value in state.items() if name.startswith(SEARCH_WEIGHTS)}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes over a model's weights; an InputError names one that is missing, unknown, of another shape, not finite."""
    _require_same(model.state_dict(), state)
    _require_finite(state)
    model.load_state_dict(state, strict=False)


def read_weights(path: str | os.PathLike[str], averaged: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name: a ``state_dict``, or what one has under "model".

    Args:
        averaged: those under "ema" (of our own trainer) or "ema_state" (of D2Go), where there are any.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no checkpoint, or holds no named tensors.
    """
    where = os.fspath(path)
    try:
        content = read_tensors(where)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"weights {error}") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    key = "model"
    if averaged and isinstance(content, Mapping):
        key = next((key for key in ("ema", "ema_state") if key in content), key)
        state = content.get(key, state)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights {where!r}: found no named tensors, nor any under the key {key!r}")
    strange = [name for name in state if not isinstance(name, str)]
    if strange:
        raise InputError(f"weights {where!r}: a tensor's name is {strange[0]!r}, allowed: text")
    if key == "ema":
        state = averaged_weights(state)
    stored = content.get("model")
    if key == "ema_state" and isinstance(
        stored, Mapping
    ):  # D2Go averages also buffers that no state_dict has
        state = {name: value for name, value in state.items() if name in stored}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def averaged_weights(ema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what our own trainer's checkpoints have under "ema" by the model's own names: torch's AveragedModel puts
    "module." before them."""
    return {name.removeprefix("module."): value for name, value in ema.items() if name != "n_averaged"}


def _with_supernet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A supernet's own ``state_dict`` by the names that a search gives it; anything else as it is."""
    if any(name.startswith("stage0.") for name in state):
        return {f"{_SUPERNET}{name}": value for name, value in state.items()}
    return state


def _part(name: str) -> str:
    return "the searchable blocks" if name.startswith(_SUPERNET) else ".".join(name.split(".")[:2])


def _require_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    missing = [name for name in ours if name not in theirs and not name.endswith(_COUNT)]
    unknown = [name for name in theirs if name not in ours]
    if missing or unknown:
        raise InputError(
            f"not of this model: {len(missing)} of its {len(ours)} weights are missing ({_some(missing)}), "
            f"{len(unknown)} are unknown ({_some(unknown)})"
        )
    for name, value in theirs.items():
        if ours[name].shape != value.shape:
            raise InputError(
                f"{name!r} is {tuple(value.shape)} in the file, {tuple(ours[name].shape)} in the model"
            )


def _require_finite(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{name!r} is not finite (NaN or infinity)")
        if name.endswith("running_var") and (value < 0).any():
            raise InputError(f"{name!r}, a variance, is below 0")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
