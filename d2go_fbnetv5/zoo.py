"""Models by name, FBNetV5-{A_C, A_R, A, C, F}-{CLS, SEG, DET, DEPTH}, with `builtin_topology`, those of several tasks,
FBNetV5-A-CLS+DET, and those of runs.

Some names have trained weights in the package, each a folder of `hub.save_pretrained` with a network of its own.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2go_fbnetv5.arch import Backbone, Topology, list_families
from d2go_fbnetv5.arch.families import PATHS
from d2go_fbnetv5.arch.topology import joint_topology
from d2go_fbnetv5.arch.topology_file import find_topology, load_topologies
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.data.ade20k import ADE20K_NAMES
from d2go_fbnetv5.engine.checkpoint import list_checkpoints
from d2go_fbnetv5.engine.network import NETWORK_FILE
from d2go_fbnetv5.engine.predictor import Predictor, from_run, open_network
from d2go_fbnetv5.models import MODELS, SearchedModel, SeveralHeads
from d2go_fbnetv5.models.reconstructions import builtin_topology
from d2go_fbnetv5.models.several_heads import joint_features
from d2go_fbnetv5.models.weights import load_weights, read_search_weights
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options, shown, to_budget
from d2go_fbnetv5.utils.shipped import pretrained_folder

FAMILIES = ("A_C", "A_R", "A", "C", "F")
_NAME = re.compile(r"FBNetV5-(?P<family>.+)-(?P<tasks>[A-Z]+(\+[A-Z]+)*)")
CLASSES = {"CLS": 1000, "SEG": 150, "DET": 80, "DEPTH": 1}  # of the paper's data


def list_models(pretrained: bool = False) -> list[str]:
    """Return the names of the models of one task in the paper's sizes, or of those that have trained weights in the
    package."""
    if pretrained:
        return sorted(path.parent.name for path in pretrained_folder().glob(f"*/{NETWORK_FILE}"))
    return [f"FBNetV5-{family}-{task}" for task in CLASSES for family in FAMILIES]


def create_model(
    name: str | os.PathLike[str],
    num_classes: int | Mapping[str, int] | None = None,
    topology: Topology | str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    budget: Mapping[str, float] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> SearchedModel:
    """Build a model by name, ready to be trained, or open the one that a training has left in its folder.

    Args:
        name: one of `list_models`, or the same with another registered family, such as "FBNetV5-N-DET"; or with several
            tasks, "FBNetV5-A-CLS+DET+SEG", for a `SeveralHeads`; or the OUTPUT_DIR of a training, which has a topology,
            classes, options and trained weights of its own.
        num_classes: classes to predict, of several tasks by their names, {"cls": 10}; the paper's data set by default
            (1000, 150 and 80).
        topology: a topology, or the path of a ``topologies.json`` or ``front.json`` whose "cls", "seg", "det" or
            "depth" is taken; by default the built-in reconstruction, which is not the paper's own. Several tasks take
            the union of theirs (`joint_topology`).
        weights: path of a checkpoint, of such a model or of a supernet of the family (`load_weights`); without it a
            model by name is not trained, and a training's has the newest one of its folder.
        budget: of a ``front.json`` the best network is taken whose backbone costs no more, {"flops": 9e6}, see
            `TopologyFile.task`.
        pretrained: of a name in ``list_models(pretrained=True)``, take the network and the weights that come with the
            package; classes, topology and options are those of its card.
        options: the model's further arguments, such as ``test_proposals`` or ``pixel_mean``; of several tasks
            ``heads``, {"det": {"test_proposals": ...}}.

    Returns:
        the model in training mode.

    Raises:
        ValueError: an unknown name, option or task, or weights that do not fit, also those of the package; the message
            says what does.
        FileNotFoundError: no such topology or weights file.
    """
    match = _NAME.fullmatch(os.fspath(name))
    if match is None and os.path.isdir(name):
        given = {"num_classes": num_classes, "topology": topology, "budget": budget, **options}
        wrong = [key for key, value in given.items() if value is not None]
        if wrong:
            raise InputError(f"run {os.fspath(name)} has its own {wrong[0]}; allowed is weights alone")
        return from_run(name, weights).model.train()
    tasks = match["tasks"].split("+") if match else []
    known = len(set(tasks)) == len(tasks) and set(tasks) <= set(CLASSES)
    if match is None or not known or match["family"] not in list_families():
        raise InputError(
            f"unknown model {os.fspath(name)!r}; available: {', '.join(list_models())}, several tasks as in "
            "FBNetV5-A-CLS+DET, or the folder of a training"
        )
    kind = MODELS[tasks[0].lower()] if len(tasks) == 1 else SeveralHeads
    if kind is SeveralHeads:
        options["heads"] = {task.lower(): {} for task in tasks} | dict(options.get("heads", {}))
    counts, parts = _num_classes(num_classes, tasks), kind.parts(options)
    reads = {task: part.in_features for task, part in parts.items()}
    if budget and (topology is None or isinstance(topology, Topology)):
        raise InputError("a budget is given, allowed with the path of a front.json as topology alone")
    if topology is not None and not isinstance(topology, Topology):
        within = to_budget(budget or {}, "budget ")
        topology = find_topology(load_topologies(topology), "+".join(reads), reads, within, match["family"])
    options = bind_options(f"model {name!r}", kind, options, ("backbone", "num_classes"))
    if pretrained:
        given = {"num_classes": num_classes, "topology": topology, "weights": weights, **options}
        return _open_pretrained(os.fspath(name), given)
    if topology is None:
        topology = joint_topology({task: builtin_topology(task.upper()) for task in reads}, reads)
    backbone = Backbone(match["family"], topology, joint_features(parts.values()))
    model = kind(backbone, counts if kind is SeveralHeads else next(iter(counts.values())), **options)
    if weights is not None:
        load_weights(model, weights, supernet=True)
    return model


def _open_pretrained(name: str, given: Mapping[str, Any]) -> SearchedModel:
    """Return the model whose trained weights come with the package, in training mode.

    Args:
        given: what else `create_model` was given, by its arguments' names; None for nothing.

    Raises:
        InputError: there are no weights of that name, they are not those of the card, or something given is not what
            they were trained with.
    """
    if name not in list_models(pretrained=True):
        raise InputError(
            f"no trained weights come with the package for {name}; they do for {', '.join(list_models(True))}"
        )
    network, model = open_network(pretrained_folder() / name), from_run(pretrained_folder() / name).model
    parameters = inspect.signature(type(model)).parameters
    known = {key: parameter.default for key, parameter in parameters.items()}
    known |= {**network.arguments(type(model)), "topology": model.backbone.topology, "weights": None}
    for key, value in given.items():
        found = value.prune(model.in_features) if isinstance(value, Topology) else value
        if value is not None and found != known[key]:
            raise InputError(
                f"{key} is {shown(value)}, allowed with the trained weights of {name}: {shown(known[key])}"
            )
    return model.train()


def _num_classes(given: int | Mapping[str, int] | None, tasks: Sequence[str]) -> dict[str, int]:
    """Return the number of classes of each task by its name in lower case."""
    counts = {task.lower(): CLASSES[task] for task in tasks}
    if given is None:
        return counts
    several = len(tasks) > 1
    if isinstance(given, Mapping) is not several or (
        isinstance(given, Mapping) and not set(given) <= set(counts)
    ):
        allowed = f"numbers by some of {', '.join(counts)}" if several else "1 or more"
        raise InputError(f"num_classes is {given!r}; allowed is {allowed}")
    counts |= given if isinstance(given, Mapping) else dict.fromkeys(counts, given)
    if min(counts.values()) < 1:
        raise InputError(f"num_classes is {given!r}; allowed is 1 or more")
    return counts


def create_backbone(
    run: str | os.PathLike[str],
    task: str,
    outputs: Collection[str] = PATHS,
    topology: str | os.PathLike[str] | None = None,
    budget: Mapping[str, float] | None = None,
    pretrained: bool = True,
) -> Backbone:
    """Build the network that a search found for a task, without a head, to be trained with another one.

    Args:
        run: the search's folder.
        task: one of the search's, such as "det".
        outputs: the paths that the head is to read. On those that the search's own head does not read there are the
            blocks that this head needs, and Stage 0.
        topology: a ``topologies.json`` or ``front.json``; by default what the search found.
        budget: of a ``front.json`` the best network is taken that costs no more, as in `create_model`.
        pretrained: whether the supernet's weights are taken over.

    Returns:
        the backbone in training mode. It maps N x 3 x H x W, RGB in 0..1 normalised by ImageNet's means and deviations,
        to features by the outputs' names; its ``feature_info`` says their channels and reduction, as timm's do.

    Raises:
        FileNotFoundError: there is no such run or file.
        InputError: there is no such task or path, or no network within the budget.
    """
    unknown = [name for name in outputs if name not in PATHS]
    if unknown or not outputs:
        raise InputError(f"outputs is {list(outputs)}, allowed: one or more of {', '.join(PATHS)}")
    file = load_topologies(topology or Path(run, "topologies.json"))
    entry = file.task(task, to_budget(budget or {}, "budget "), file.family, tuple(outputs))
    backbone = Backbone(file.family, entry.topology.prune(entry.outputs), outputs)
    if pretrained:
        checkpoints = list_checkpoints(run)
        if not checkpoints:
            raise FileNotFoundError(f"{os.fspath(run)}: there is no checkpoint, such as model_final.pth")
        weights = read_search_weights(checkpoints[0])
        backbone.load_supernet({name.removeprefix("supernet."): value for name, value in weights.items()})
    return backbone


def from_zoo(
    name: str,
    weights: str | None,
    topology: str | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    budget: Mapping[str, float] | None = None,
    pretrained: bool = False,
) -> Predictor:
    """Return the predictor of a model of the zoo.

    Args:
        name: such as "FBNetV5-A-DET".
        weights: its checkpoint; None for a model that is not trained.
        topology: the topologies.json or front.json that it was trained with; by default the zoo's reconstruction.
        num_classes: as many as there are names, or as in the paper, by default.
        names: of the classes; by default those of ADE20K for its 150, else the numbers.
        budget: by which its network was picked of a front.json.
        pretrained: take the weights that come with the package, with their classes' names and images' size.

    Raises:
        FileNotFoundError, ValueError: names what is missing or does not fit.
    """
    own = weights if pretrained else None  # which `create_model` refuses
    model = create_model(
        name, num_classes or (len(names) if names else None), topology, own, budget, pretrained
    )
    if weights is not None:
        load_weights(model, weights)
    singles, found = model.singles(), {}
    for task, single in singles.items():
        count = single.num_classes
        if names is not None and len(names) != count:
            raise InputError(f"{len(names)} names of classes are given, the model has {count} classes")
        default = tuple(map(str, range(count)))
        found[task] = ADE20K_NAMES if task == "seg" and count == len(ADE20K_NAMES) else default
    if pretrained:
        network = open_network(pretrained_folder() / name)
        own_names = tuple(names) if names else network.names
        return Predictor(model.eval(), "+".join(singles), own_names, network.images)
    family = model.backbone.family
    side = family.input_size
    task, maps = "+".join(singles), EvalTransform({"C": 448, "F": 512}.get(family.name, 384), max_size=2048)
    transforms = {
        "cls": EvalTransform(round(side / 0.875), side),
        "det": EvalTransform(224, max_size=320),
    }  # Table 3 has the others'
    return Predictor(
        model.eval(),
        task,
        found if len(singles) > 1 else tuple(names or found[task]),
        transforms.get(task, maps),
    )
