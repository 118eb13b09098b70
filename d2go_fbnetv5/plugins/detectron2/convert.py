"""Weights of other trainers and stages under the names that a model has here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Supernet
from d2go_fbnetv5.models.detectron2_names import RPN, to_generalized_rcnn
from d2go_fbnetv5.utils.errors import InputError

_STAGE0 = "stage0."
_OBSERVERS = ("fake_quant", "activation_post_process")  # which training for int8 adds to a network
_DISPENSABLE = ("num_batches_tracked", *_OBSERVERS)


def network_prefix(names: Iterable[str]) -> str | None:
    """Return what is before the supernet's or the searched network's names in a model's, such as "backbone.bottom_up.";
    None if it has neither."""
    return next((name.split(_STAGE0)[0] for name in names if _STAGE0 in name), None)


def adapt_weights(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights for a model to start from.

    Of a search, of a supernet alone or of another model, the network takes its part, wherever it is in this one; a
    Lite R-CNN of our own trainer gets Detectron2's names. Anything else stays as it is.

    Args:
        ours: the model's own ``state_dict``.
    """
    state = dict(state)
    if any(name.startswith(RPN) for name in ours) and any(name.startswith("roi_head.") for name in state):
        state = to_generalized_rcnn(state)
    theirs, here = network_prefix(state), network_prefix(ours)
    if theirs is None or here is None or theirs == here:
        return state
    renamed = {here + name.removeprefix(theirs): v for name, v in state.items() if name.startswith(theirs)}
    return {name: value for name, value in renamed.items() if name in ours}


def has_observers(names: Iterable[str]) -> bool:
    """Return whether a model's weights are those of one that is trained for int8."""
    return any(is_observer(name) for name in names)


def is_observer(name: str) -> bool:
    """Return whether a value is a range that training for int8 has found: it may be infinite, and of another shape."""
    return any(part in name for part in _OBSERVERS)


def require_fit(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise an InputError if a weight for a model with our network is not finite, or one of the network has another
    shape than in ``ours``. (Detectron2 passes over what does not fit, which heads of other classes may.)"""
    prefix = network_prefix(ours)
    if prefix is None:
        return
    for name, value in state.items():
        if is_observer(name):
            continue
        if name in ours and not torch.as_tensor(value).isfinite().all():
            raise InputError(f"MODEL.WEIGHTS: {name!r} is not finite (NaN or infinity)")
        if name.startswith(prefix) and name in ours and value.shape != ours[name].shape:
            raise InputError(
                f"MODEL.WEIGHTS: {name!r} is {tuple(value.shape)} in the file, {tuple(ours[name].shape)} in the model; "
                "is it of another family?"
            )


def require_whole(network: nn.Module) -> None:
    """Make it an error to load a checkpoint that lacks weights of a supernet or a searched network.

    Detectron2 passes over missing weights with a warning, and a search's have other names than a model's: training
    would start from random weights. A supernet may do without all stages but Stage 0, for which there are public
    weights.
    """
    network.register_load_state_dict_pre_hook(_refuse_partial)


def _refuse_partial(network: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    needed = [name for name in network.state_dict() if not any(part in name for part in _DISPENSABLE)]
    if isinstance(network, Supernet) and not any(
        prefix + name in state for name in needed if not name.startswith(_STAGE0)
    ):
        needed = [name for name in needed if name.startswith(_STAGE0)]
    missing = [name for name in needed if prefix + name not in state]
    if missing:
        where = prefix.removesuffix(".") or type(network).__name__
        raise InputError(
            f"the weights to load lack {len(missing)} of the {len(needed)} that the network {where} needs "
            f"({prefix}{missing[0]}, ...); those of a search, a supernet or another model of the same family and "
            "topology are taken over by FBNetV5Checkpointer and FBNetV5Trainer of d2go_fbnetv5.plugins.detectron2"
        )


def leave_to_training(model: nn.Module, names: Sequence[str]) -> None:
    """Make it an error to judge or export ``model`` before its first training step, as these weights are random.

    Args:
        names: of the weights that a checkpoint has not given; if there are none, all is well.
    """
    model.untrained_weights = tuple(names)
    if not names:
        return

    def before_forward(module: nn.Module, _: Any) -> None:
        if module.training:
            module.untrained_weights = ()
            hook.remove()
        else:
            require_trained(module)

    hook = model.register_forward_pre_hook(before_forward)


def require_trained(model: nn.Module) -> None:
    """Raise an InputError if weights of the model, in whatever wrappers, are left to a training that has not begun."""
    names = next((found for part in model.modules() if (found := getattr(part, "untrained_weights", ()))), ())
    if names:
        raise InputError(
            f"MODEL.WEIGHTS lacks {len(names)} weights of the model ({names[0]}, ...), which are random: a training "
            "may begin so, but to judge or export the model it takes those of its own training (of a search: its "
            "folder, with --resume)"
        )
