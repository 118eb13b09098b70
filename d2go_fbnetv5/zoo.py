"""The paper's models by name: FBNetV5-{A_C, A_R, A, C, F}-{CLS, SEG, DET}.

The built-in topologies are reconstructions, never the paper's own. Figure 3, where the paper shows its searched
topologies, is a picture without numbers. What its FLOPs still tell is how many blocks each path keeps: with 7
stages, the published totals of the five family sizes (Table 2 for CLS, the BB column of Table 6 for SEG and of
Table 7 for DET) are met within 1.5% by the counts chosen here (``tools/solve_topologies.py`` finds them, among
others that fit about as well). *Where* the blocks sit is our choice, guided by section 4.4: SEG climbs from
low to high resolution as a U-Net does, CLS keeps many blocks of high resolution. So these models cost what the
published ones cost; their accuracy is their own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from d2go_fbnetv5.arch import Backbone, Topology, list_families
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN, SearchedModel
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options

FAMILIES = ("A_C", "A_R", "A", "C", "F")
_NAME = re.compile(r"FBNetV5-(?P<family>.+)-(?P<task>[A-Z]+)")


@dataclass(frozen=True)
class _Entry:
    """A task's model class, its number of classes in the paper, and the reconstructed topology."""

    model: type[SearchedModel]
    num_classes: int
    topology: Topology


def _topology(rows: str) -> Topology:
    """One group a stage, Stage 1 first; in a group Path 0 to Path 3."""
    return Topology([[int(kept) for kept in row] for row in rows.split()])


_TASKS = {
    "CLS": _Entry(ImageClassifier, 1000, _topology("1000 1000 0101 1001 0101 0011 0001")),
    "SEG": _Entry(LiteMaskFormer, 150, _topology("0001 0011 1111 1101 1100 1001 0101")),
    "DET": _Entry(LiteRCNN, 80, _topology("1001 1100 0011 1101 0110 1001 0100")),
}


def list_models() -> list[str]:
    """The names of the paper's models."""
    return [f"FBNetV5-{family}-{task}" for task in _TASKS for family in FAMILIES]


def builtin_topology(task: str) -> Topology:
    """The reconstructed topology of "CLS", "SEG" or "DET"; not the paper's own (see the module's text)."""
    if task not in _TASKS:
        raise InputError(f"unknown task {task!r}; allowed are {', '.join(_TASKS)}")
    return _TASKS[task].topology


def create_model(
    name: str,
    num_classes: int | None = None,
    topology: Topology | str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> SearchedModel:
    """Builds a model by name. Without ``weights`` it is not trained.

    Args:
        name: one of `list_models`, or the same with another registered family, such as "FBNetV5-N-DET".
        num_classes: classes to predict; the paper's data set by default (1000, 150 and 80).
        topology: a topology, or the path of a ``topologies.json`` whose "cls", "seg" or "det" is taken; by
            default the built-in reconstruction, which is not the paper's own.
        weights: path of a checkpoint, of such a model or of a supernet of the family (`load_weights`).
        options: the model's further arguments, such as ``test_proposals`` or ``pixel_mean``.

    Raises:
        ValueError: an unknown name, option or task, or weights that do not fit; the message says what does.
        FileNotFoundError: no such topology or weights file.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["task"] not in _TASKS or match["family"] not in list_families():
        raise InputError(f"unknown model {name!r}; available: {', '.join(list_models())}")
    entry = _TASKS[match["task"]]
    if num_classes is None:
        num_classes = entry.num_classes
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}; allowed is 1 or more")
    if topology is None:
        topology = entry.topology
    elif not isinstance(topology, Topology):
        topology = load_topologies(topology).task(match["task"].lower()).topology
    backbone = Backbone(match["family"], topology, entry.model.in_features)
    options = bind_options(f"model {name!r}", entry.model, options, ("backbone", "num_classes"))
    model = entry.model(backbone, num_classes, **options)
    if weights is not None:
        load_weights(model, weights, supernet=True)
    return model
