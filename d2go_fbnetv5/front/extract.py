"""Takes a task's network out of a search, with its weights: a run of a model, as if it had been trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fvcore.common.config import CfgNode
from torch import Tensor

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import load_topologies, save_topologies
from d2go_fbnetv5.engine.config import get_cfg
from d2go_fbnetv5.engine.evaluation import precise_batch_norm
from d2go_fbnetv5.engine.keys import KEYS
from d2go_fbnetv5.engine.recipes.models import ModelRecipe, model_recipe
from d2go_fbnetv5.engine.recipes.search import cost_size
from d2go_fbnetv5.engine.train import Run, check_new, prepare
from d2go_fbnetv5.front.run import FOLDER
from d2go_fbnetv5.front.searches import open_search
from d2go_fbnetv5.models import ModelHead, SearchedModel
from d2go_fbnetv5.models.weights import load_state
from d2go_fbnetv5.search import Search
from d2go_fbnetv5.tasks.base import Task
from d2go_fbnetv5.tasks.classification import Classification
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import to_budget
from d2go_fbnetv5.utils.rules import get


def extract_network(
    run: str | Path,
    task: str,
    output: str | Path,
    budget: Mapping[str, Any] | None = None,
    topology: Topology | None = None,
) -> dict[str, float]:
    """Take a task's network out of a search: its blocks, its head, and batch-norm statistics of its own.

    ``output`` is then a run of the model that has such a head (ImageClassifier, LiteRCNN or LiteMaskFormer), which
    predictions, exports, benchmarks and evaluations open, and which trainings start from. Its outputs are the
    supernet's under that topology, with statistics that are measured on the search's SEARCH.EVAL.BN_ITERS batches.

    Args:
        run: the folder of a search, whose head for the task is the model's (SEARCH.HEADS.det.head lite; a classifier's
            of the family's size always is).
        output: the folder to write, which holds no run yet.
        budget: takes the best network of ``RUN/front/front.json`` whose backbone costs no more, such as {"flops": 9e6};
            without it what the search found is taken.
        topology: is taken in place of either.

    Returns:
        the model's metrics on the search's validation data.

    Raises:
        InputError: the run is no search or has no such task, its head is no model's, or no network is within the
            budget; FileNotFoundError: there is no such run, or it has no front.
    """
    folder, output = Path(run), Path(output)
    check_new(output, go_on=False)
    with open_search(folder) as opened:
        cfg, search = opened.cfg, cast(Search, opened.model)
        if task not in search.tasks:
            raise InputError(f"task {task!r}: {folder} has {', '.join(search.tasks)}")
        head = _head_of(cast(Task, search.tasks[task]))
        supernet = search.supernet.state_dict()
    options = cfg.MODEL.FBNETV5
    if topology is None:
        file = load_topologies(folder / FOLDER / "front.json" if budget else folder / "topologies.json")
        within = to_budget(budget or {}, "budget ")
        topology = file.task(task, within, options.FAMILY, head.recipe.kind.in_features).topology
    output.mkdir(parents=True, exist_ok=True)
    entry = {"topology": topology, "outputs": head.recipe.kind.in_features}
    path = output.absolute() / "topologies.json"
    save_topologies(path, options.FAMILY, topology.num_stages, cost_size(cfg), {task: entry})
    made = Run(prepare(_configure(cfg, task, head, output, path), 1))
    try:
        model = cast(SearchedModel, made.model)
        backbone = {f"backbone.{name}": supernet[name] for name in model.backbone.state_dict()}
        try:
            load_state(model, backbone | head.weights)
        except InputError as error:
            raise InputError(f"the head of {task} in {folder} is not that of the model: {error}") from error
        with precise_batch_norm(model, made.data.statistics_batches(cfg.SEARCH.EVAL.BN_ITERS)):
            state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        made.checkpointer.save_iteration(0, final=True)
        return made.conclude()
    finally:
        made.close()


@dataclass(frozen=True)
class _Head:
    """A search's head as a part of a model: the options that it is built with, and its weights by the model's names."""

    recipe: type[ModelRecipe]
    options: dict[str, Any]
    weights: dict[str, Tensor]


def _head_of(task: Task) -> _Head:
    state = task.state_dict()
    if isinstance(task, ModelHead):
        weights = {name.removeprefix("model."): value for name, value in state.items()}
        return _Head(model_recipe(task.kind.__name__), task.options, weights)
    if isinstance(task, Classification):
        return _Head(
            model_recipe("ImageClassifier"), {}, {f"head.{name}": value for name, value in state.items()}
        )
    raise InputError(
        f"the search's head of {task.name} is a {type(task).__name__}, which no model has; allowed is a search with "
        f"SEARCH.HEADS.{task.name}.head lite"
    )


def _configure(cfg: CfgNode, task: str, head: _Head, output: Path, topologies: Path) -> CfgNode:
    """Return the configuration of the model's run: the search's, but for what only searches read."""
    defaults, made = get_cfg(), cfg.clone()
    made.defrost()
    for key, row in KEYS.items():
        if row.readers and not set(row.readers) & set(head.recipe.readers or ()):
            group, _, last = key.rpartition(".")
            get(made, group)[last] = get(defaults, key)
    made.MODEL.META_ARCHITECTURE = head.recipe.kind.__name__
    made.MODEL.WEIGHTS = ""
    made.MODEL_EMA.ENABLED = False
    made.SOLVER.LR_MULTIPLIER_OVERWRITE = []  # of parts that a search has
    options = made.MODEL.FBNETV5
    options.TOPOLOGY, options.TOPOLOGY_TASK = str(topologies), task
    options.HEAD = type(made)(head.options, new_allowed=True)
    made.OUTPUT_DIR = str(output)
    return made
