"""Weights of published FBNetV3 models, timm's and mobile_cv's, by the names of ours.

Neither package is needed for a file: the checkpoints are dictionaries of tensors, named ``xif<stage>_<block>...`` in
mobile_cv and ``blocks.<stage>.<block>...`` in timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from d2go_fbnetv5.arch.families import PATHS, Family, build_family
from d2go_fbnetv5.arch.supernet import Supernet
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError

_MOBILE_CV = re.compile(r"(?:.*\.)?xif(?P<stage>\d+)_(?P<block>\d+)\.(?P<rest>.+)")
_TIMM = re.compile(r"blocks\.(?P<stage>\d+)\.(?P<block>\d+)\.(?P<rest>.+)")
_STEM = "conv_stem"  # what every model of timm's begins with
_LAST_NORM = "pwl.bn."
_COUNT = "num_batches_tracked"  # of batch norms; nothing depends on it

# Parts of a layer, ours by theirs.
_MOBILE_CV_PARTS = {"se.se.0.conv.": "se.reduce.", "se.se.1.": "se.expand."}
_MOBILE_CV_POOL = {"pwl.conv.": "pwl."}
_TIMM_SQUEEZE = {"se.conv_reduce.": "se.reduce.", "se.conv_expand.": "se.expand."}
_TIMM_EXPANDED = {
    "conv_pw.": "pw.conv.",
    "bn1.": "pw.bn.",
    "conv_dw.": "dw.conv.",
    "bn2.": "dw.bn.",
    "conv_pwl.": "pwl.conv.",
    "bn3.": "pwl.bn.",
}
_TIMM_PLAIN = {"conv_dw.": "dw.conv.", "bn1.": "dw.bn.", "conv_pw.": "pwl.conv.", "bn2.": "pwl.bn."}

Blocks = Sequence[tuple[str, dict[str, Tensor]]]  # what a message calls a layer, and its weights by our names


def load_published(path: str | Path, family: str | Family) -> dict[str, Tensor]:
    """Read a checkpoint of mobile_cv or timm (its averaged weights where it has them) and convert it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds something else than weights, or those of another model.
    """
    data = read_tensors(path)
    for key in ("model_ema", "state_dict_ema", "state_dict"):
        if isinstance(data, Mapping) and data.get(key):
            data = data[key]
            break
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: a dictionary of weights is needed, found {type(data).__name__}")
    try:
        return convert_published(data, family)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def convert_published(state_dict: Mapping[str, Tensor], family: str | Family) -> dict[str, Tensor]:
    """Rename the weights of an FBNetV3 model of timm's or mobile_cv's.

    Args:
        state_dict: of timm's model; or of mobile_cv's model, backbone or training checkpoint, in which prefixes such as
            "module." may stand before the blocks' names.
        family: the family of the same size.

    Returns:
        "stage0.path<p>.<layer>..." as in ``Supernet`` and ``Backbone``, "pool..." as in ``Family.build_pool`` where the
        model has it, and timm's last layer as "fc...".

    Raises:
        InputError: blocks are missing or too many, or a weight has another shape than the family's.
    """
    family = build_family(family)
    state_dict = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if f"{_STEM}.weight" in state_dict:
        if any(layer.pad is not None for part in family.partitions for layer in part):
            raise InputError(
                f"timm pads each convolution by half of its kernel and family {family.name} does not; allowed for "
                "timm's weights: B_TIMM, D, G"
            )
        converted = _place(_timm_blocks(state_dict), family)
        last = {"fc.weight": "classifier.weight", "fc.bias": "classifier.bias"}
        return converted | {ours: state_dict[name] for ours, name in last.items() if name in state_dict}
    return _place(_mobile_cv_blocks(state_dict, family), family)


def fill_stages(weights: Mapping[str, Tensor], family: str | Family, num_stages: int) -> dict[str, Tensor]:
    """Give each searchable block the weights of its partition's last two layers, of which it is made.

    A layer of another shape, as where the partition widens there, stays fresh. So does every last batch norm: its
    factor is zero, and with it a block is the identity until it has learnt, as it was not trained to be applied twice.

    Args:
        weights: as `convert_published` has them.

    Returns:
        The same with all of the supernet's ``stages...`` of so many stages.
    """
    supernet = Supernet(family, num_stages)
    filled = {name: value for name, value in supernet.state_dict().items() if name.startswith("stages.")}
    for path in PATHS:
        layers = sorted({int(name.split(".")[2]) for name in weights if name.startswith(f"stage0.{path}.")})
        for place, layer in enumerate(layers[-2:]):
            source = _below(weights, f"stage0.{path}.{layer}.")
            for stage in range(1, num_stages + 1):
                prefix = f"stages.stage{stage}.{path}.{place}."
                fresh = _below(filled, prefix)
                if _shapes(source) == _shapes(fresh):
                    filled |= {
                        f"{prefix}{rest}": value
                        for rest, value in source.items()
                        if not rest.startswith(_LAST_NORM)
                    }
    return {**weights, **filled}


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items() if not name.endswith(_COUNT)}


def _by_block(
    state_dict: Mapping[str, Tensor], names: re.Pattern[str]
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Return the weights of each block by their places in it, the blocks in the order of the network."""
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, value in state_dict.items():
        match = names.fullmatch(name)
        if match is not None:
            found.setdefault((int(match["stage"]), int(match["block"])), {})[match["rest"]] = value
    return dict(sorted(found.items()))


def _mobile_cv_blocks(state_dict: Mapping[str, Tensor], family: Family) -> Blocks:
    found = _by_block(state_dict, _MOBILE_CV)
    pool = max(found, default=None) if len(found) > len(_targets(family)) - 1 else None
    blocks = []
    for key, theirs in found.items():
        parts = {**_MOBILE_CV_PARTS, **(_MOBILE_CV_POOL if key == pool else {})}
        weights = {_rename(rest, parts): value for rest, value in theirs.items()}
        # Their first convolution has a bias in front of its batch norm, which that norm's mean can carry.
        if "conv.bias" in weights and "bn.running_mean" in weights:
            weights["bn.running_mean"] = weights["bn.running_mean"] - weights.pop("conv.bias")
        blocks.append((f"xif{key[0]}_{key[1]}", weights))
    return blocks


def _timm_blocks(state_dict: Mapping[str, Tensor]) -> Blocks:
    found = _by_block(state_dict, _TIMM)
    stem = {"conv.weight": state_dict[f"{_STEM}.weight"]}
    stem |= {f"bn.{rest}": value for rest, value in _below(state_dict, "bn1.").items()}
    blocks = [(_STEM, stem)]
    for (stage, block), theirs in found.items():
        parts = _TIMM_EXPANDED if "conv_pwl.weight" in theirs else _TIMM_PLAIN
        if "conv.weight" in theirs:  # the convolution before the pooling, whose projection is conv_head
            parts = {"conv.": "pw.conv.", "bn1.": "pw.bn."}
            theirs["pwl.weight"] = state_dict["conv_head.weight"]
        weights = {_rename(rest, parts | _TIMM_SQUEEZE): value for rest, value in theirs.items()}
        blocks.append((f"blocks.{stage}.{block}", weights))
    return blocks


def _rename(rest: str, parts: Mapping[str, str]) -> str:
    for theirs, ours in parts.items():
        if rest.startswith(theirs):
            return ours + rest.removeprefix(theirs)
    return rest


def _targets(family: Family) -> list[tuple[str, nn.Module]]:
    layers = [
        (f"stage0.{PATHS[path]}.{i}", layer)
        for path in range(family.num_paths)
        for i, layer in enumerate(family.build_partition(path))
    ]
    return [*layers, ("pool", family.build_pool())]


def _place(blocks: Blocks, family: Family) -> dict[str, Tensor]:
    targets = _targets(family)
    if len(blocks) not in (len(targets), len(targets) - 1):
        raise InputError(
            f"the checkpoint has {len(blocks)} blocks, named xif<stage>_<block> or blocks.<stage>.<block>, family "
            f"{family.name} has {len(targets) - 1} and a pooling block"
        )
    converted = {}
    for (theirs, weights), (prefix, module) in zip(blocks, targets, strict=False):
        expected = module.state_dict()
        for rest in sorted(set(weights) ^ set(expected)):
            if not rest.endswith(_COUNT):
                where = "the family" if rest in weights else "the checkpoint"
                raise InputError(f"{theirs}: {rest!r} is missing in {where} ({family.name})")
        for rest, value in weights.items():
            if rest in expected and value.shape != expected[rest].shape:
                raise InputError(
                    f"{theirs}: {rest!r} is {tuple(value.shape)}, in family {family.name} it is "
                    f"{tuple(expected[rest].shape)}"
                )
            converted[f"{prefix}.{rest}"] = value
    return converted
