"""Weights of mobile_cv's FBNetV3 models, by the names of ours.

mobile_cv itself is not needed: its checkpoints are dictionaries of tensors named ``xif<stage>_<block>...``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from d2go_fbnetv5.arch.families import PATHS, Family, build_family
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError

_BLOCK = re.compile(r"(?:.*\.)?xif(?P<stage>\d+)_(?P<block>\d+)\.(?P<rest>.+)")
_SQUEEZE = {"se.se.0.conv": "se.reduce", "se.se.1": "se.expand"}


def convert_mobile_cv(state_dict: Mapping[str, Tensor], family: str | Family) -> dict[str, Tensor]:
    """Renames the weights of an FBNetV3 model of mobile_cv.

    Args:
        state_dict: of its model, backbone, or training checkpoint; prefixes such as "module." may stand before
            the blocks' names.
        family: the family of the same size.

    Returns:
        "stage0.path<p>.<layer>..." as in ``Supernet`` and ``Backbone``, and "pool..." as in ``Family.build_pool``
        where the model has it. The classifier's last layer is left out.

    Raises:
        ValueError: blocks are missing or too many, or a weight has another shape than the family's.
    """
    family = build_family(family)
    blocks: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, value in state_dict.items():
        match = _BLOCK.fullmatch(name)
        if match is not None:
            blocks.setdefault((int(match["stage"]), int(match["block"])), {})[match["rest"]] = value
    targets = [
        (f"stage0.{PATHS[path]}.{i}", layer)
        for path in range(family.num_paths)
        for i, layer in enumerate(family.build_partition(path))
    ] + [("pool", family.build_pool())]
    if len(blocks) not in (len(targets), len(targets) - 1):
        raise InputError(
            f"the checkpoint has {len(blocks)} blocks named xif<stage>_<block>, family {family.name} has "
            f"{len(targets) - 1} and a pooling block"
        )
    converted = {}
    for key, (prefix, module) in zip(sorted(blocks), targets, strict=False):
        weights = {_rename(rest, prefix == "pool"): value for rest, value in blocks[key].items()}
        _fold_bias(weights)
        expected = module.state_dict()
        for rest in sorted(set(weights) ^ set(expected)):
            if not rest.endswith("num_batches_tracked"):
                where = "the family" if rest in weights else "the checkpoint"
                raise InputError(f"xif{key[0]}_{key[1]}: {rest!r} is missing in {where} ({family.name})")
        for rest, value in weights.items():
            if rest in expected and value.shape != expected[rest].shape:
                raise InputError(
                    f"xif{key[0]}_{key[1]}: {rest!r} is {tuple(value.shape)}, in family {family.name} it is "
                    f"{tuple(expected[rest].shape)}"
                )
            converted[f"{prefix}.{rest}"] = value
    return converted


def load_mobile_cv_checkpoint(path: str | Path, family: str | Family) -> dict[str, Tensor]:
    """Reads a checkpoint file of mobile_cv (its averaged weights where it has them) and converts it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than weights, or those of another model.
    """
    data = read_tensors(path)
    for key in ("model_ema", "state_dict"):
        if isinstance(data, Mapping) and data.get(key):
            data = data[key]
            break
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: a dictionary of weights is needed, found {type(data).__name__}")
    return convert_mobile_cv(data, family)


def _rename(rest: str, is_pool: bool) -> str:
    for theirs, ours in _SQUEEZE.items():
        if rest.startswith(f"{theirs}."):
            return ours + rest[len(theirs) :]
    return rest.replace("pwl.conv.", "pwl.") if is_pool else rest


def _fold_bias(weights: dict[str, Tensor]) -> None:
    """Their first convolution has a bias in front of its batch norm, which that norm's mean can carry."""
    if "conv.bias" in weights and "bn.running_mean" in weights:
        weights["bn.running_mean"] = weights["bn.running_mean"] - weights.pop("conv.bias")
