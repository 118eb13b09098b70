"""MODEL.META_ARCHITECTURE "MultitaskSearch": a search on a supernet of a family, judged and reported."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from rich.progress import Progress
from torch import Tensor

from d2go_fbnetv5.arch import BlockCosts, Supernet, Topology, block_costs, build_family
from d2go_fbnetv5.arch.cost import check_size
from d2go_fbnetv5.arch.latency_table import read_latency_table
from d2go_fbnetv5.engine.build import Data, build_search_groups
from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.evaluation import device_of
from d2go_fbnetv5.engine.keys import SEARCH
from d2go_fbnetv5.engine.loop import images_to_device
from d2go_fbnetv5.engine.recipes.base import Recipe, Trained, register_recipe
from d2go_fbnetv5.engine.recipes.earlier import EarlierTasks, earlier_tasks
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge
from d2go_fbnetv5.engine.recipes.search_judge import SearchJudge
from d2go_fbnetv5.models.weights import load_earlier_search, load_search_weights
from d2go_fbnetv5.reports.history import read_history
from d2go_fbnetv5.reports.results import SearchResults, TaskResult
from d2go_fbnetv5.reports.search import search_table, write_search_report
from d2go_fbnetv5.search import (
    ALGORITHMS,
    AdaptingSearch,
    AdditionSearch,
    CostRegularizer,
    Limit,
    Search,
    decide,
)
from d2go_fbnetv5.tasks import DatasetInfo, Task, batch_images, build_task, list_tasks
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import format_least
from d2go_fbnetv5.utils.options import MisfitError, to_budget, to_float
from d2go_fbnetv5.utils.ranks import average_batch_norm, barrier, is_main, world_size
from d2go_fbnetv5.utils.rules import between, check, get
from d2go_fbnetv5.utils.text_files import check_local

logger = logging.getLogger(__name__)


@register_recipe("MultitaskSearch")
class SearchRecipe(Recipe):
    """A search over the topologies of MODEL.FBNETV5.FAMILY for SEARCH.TASKS, by SEARCH.ALGORITHM.

    Attributes:
        earlier: the tasks of the search that SEARCH.FROM names, whose results those of this one join.
    """

    model: Search
    readers = SEARCH

    def __init__(self, cfg: CfgNode, data: Data, seed: int, model: Search | None = None) -> None:
        self.earlier = earlier_tasks(cfg)
        if self.earlier is not None:
            info = self.earlier.with_labels_of(data.info)
            # Where the earlier tasks go on learning they need labels.
            data = data if cfg.SEARCH.ADAPT.ENABLED else replace(data, info=info)
        super().__init__(cfg, data, seed, model)

    @classmethod
    def validate(cls, cfg: CfgNode, world_size: int) -> None:
        cls._validate_algorithm(cfg)
        # Options of a task that is left out may stay: a run leaves tasks out by SEARCH.TASKS alone.
        strangers = [name for name in cfg.SEARCH.HEADS if name not in list_tasks()]
        if strangers:
            raise InputError(
                f"SEARCH.HEADS has options for {strangers[0]!r}, allowed as in SEARCH.TASKS: {', '.join(list_tasks())}"
            )
        for name, options in cfg.SEARCH.HEADS.items():
            if not isinstance(options, CfgNode):
                raise InputError(f"SEARCH.HEADS.{name} is {options!r}, allowed: a group of options")
        least = cfg.SEARCH.PROB_MIN
        check(cfg, "SEARCH.INIT_PROB", between(least, 1 - least))
        cls._validate_sizes(cfg)
        cls._validate_targets(cfg)
        cls._validate_addition(cfg)
        cls._validate_groups(cfg)
        check(
            cfg,
            "SEARCH.SAMPLES_PER_RANK",
            between(1, cfg.SOLVER.IMS_PER_BATCH // (world_size * cfg.SOLVER.GRAD_ACCUM)),
        )
        if cfg.SEARCH.SHARED_IMAGES and cfg.SEARCH.SAMPLES_PER_RANK < 2:
            raise InputError(
                f"SEARCH.SAMPLES_PER_RANK is {cfg.SEARCH.SAMPLES_PER_RANK}, allowed with SEARCH.SHARED_IMAGES: 2 or "
                "more, which are compared with each other"
            )
        if not cfg.SEARCH.TRAIN_WEIGHTS and not cfg.MODEL.WEIGHTS:
            raise InputError(
                "SEARCH.TRAIN_WEIGHTS is False, allowed where MODEL.WEIGHTS is of a trained supernet with its heads: "
                "found ''"
            )
        if world_size > 1 and not cfg.MODEL.DDP_FIND_UNUSED_PARAMETERS:
            raise InputError(
                "MODEL.DDP_FIND_UNUSED_PARAMETERS is False, allowed with several processes: True, "
                "because each of them samples topologies of its own"
            )

    @staticmethod
    def _validate_algorithm(cfg: CfgNode) -> None:
        algorithm, estimator = cfg.SEARCH.ALGORITHM, cfg.SEARCH.ESTIMATOR
        allowed = ALGORITHMS[algorithm].estimators
        if estimator and estimator not in allowed:
            raise InputError(
                f"SEARCH.ESTIMATOR is {estimator!r}, allowed with SEARCH.ALGORITHM {algorithm}: "
                f"{', '.join((*allowed, repr('')))}"
            )
        if cfg.SOLVER.OPTIMIZER != "sgd" and allowed and cfg.SEARCH.ARCH_WARMUP_ITERS < cfg.SOLVER.MAX_ITER:
            raise InputError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, allowed where probabilities learn: sgd, whose steps "
                "SEARCH.ARCH_LR_FACTOR is a rate for (Appendix F.1)"
            )
        if cfg.SEARCH.WARMUP_DENSITIES:
            if "warmup_densities" not in ALGORITHMS[algorithm].options:
                raise InputError(
                    f"SEARCH.WARMUP_DENSITIES is True, allowed with SEARCH.ALGORITHM {algorithm}: False"
                )
            if not cfg.SEARCH.ARCH_WARMUP_ITERS:
                raise InputError(
                    "SEARCH.WARMUP_DENSITIES is True, allowed with SEARCH.ARCH_WARMUP_ITERS 0: False"
                )
        if algorithm == "single_task" and len(cfg.SEARCH.TASKS) != 1:
            raise InputError(
                f"SEARCH.TASKS is {cfg.SEARCH.TASKS}, allowed with SEARCH.ALGORITHM single_task: one task a run"
            )

    @staticmethod
    def _validate_sizes(cfg: CfgNode) -> None:
        family = build_family(cfg.MODEL.FBNETV5.FAMILY)
        if cfg.SEARCH.COST.SIZE:
            try:
                check_size(cfg.SEARCH.COST.SIZE, family)
            except InputError as error:
                raise InputError(f"SEARCH.COST.SIZE: {error}") from error
        if cfg.SEARCH.COST.METRIC == "latency" or cfg.SEARCH.COST.TABLE:
            cost_per_block(cfg)
        placed = [name for name in cfg.SEARCH.TASKS if name != "cls"]  # a user's own, too
        if placed and cfg.FBNETV5_DATA.CROP_AREA:
            raise InputError(
                f"FBNETV5_DATA.CROP_AREA is {cfg.FBNETV5_DATA.CROP_AREA}, allowed with {placed[0]} in SEARCH.TASKS: "
                "[], as its labels would not fit what is cropped"
            )
        # Images are padded to whole strides of Path 3 before they reach the supernet.
        if cfg.INPUT.CROP.ENABLED and -(-min(cfg.INPUT.CROP.SIZE) // 32) * 32 < family.min_input_size:
            raise InputError(
                f"INPUT.CROP.SIZE is {cfg.INPUT.CROP.SIZE}, allowed for family {family.name}: "
                f"{family.min_input_size} pixels or more"
            )

    @staticmethod
    def _validate_targets(cfg: CfgNode) -> None:
        cost = cfg.SEARCH.COST
        for key in ("TASK_TARGETS", "BUDGET"):
            strangers = [name for name in cost[key] if name not in list_tasks()]
            if strangers:
                raise InputError(
                    f"SEARCH.COST.{key} has {strangers[0]!r}, allowed as in SEARCH.TASKS: {', '.join(list_tasks())}"
                )
            if cost[key] and not cost.WEIGHT:
                raise InputError(f"SEARCH.COST.WEIGHT is 0, allowed with SEARCH.COST.{key}: more")
        both = [name for name in cost.BUDGET if name in cost.TASK_TARGETS]
        if both:
            raise InputError(
                f"SEARCH.COST.TASK_TARGETS has {both[0]!r}, allowed with SEARCH.COST.BUDGET.{both[0]}: nothing"
            )
        to_budget(as_dict(cost.BUDGET), "SEARCH.COST.BUDGET.")
        _task_targets(cfg)

    @staticmethod
    def _validate_groups(cfg: CfgNode) -> None:
        groups, allowed = cfg.SEARCH.GROUPS, "groups" in ALGORITHMS[cfg.SEARCH.ALGORITHM].options
        if groups and not allowed:
            raise InputError(
                f"SEARCH.GROUPS is {groups}, allowed with SEARCH.ALGORITHM {cfg.SEARCH.ALGORITHM}: []"
            )
        named = [name for group in groups for name in group]
        wrong = [name for name in named if name not in cfg.SEARCH.TASKS or named.count(name) > 1]
        if wrong:
            raise InputError(
                f"SEARCH.GROUPS is {groups}, with {wrong[0]!r} {'twice' if wrong[0] in cfg.SEARCH.TASKS else 'in it'}; "
                f"allowed: each of SEARCH.TASKS, {', '.join(cfg.SEARCH.TASKS)}, once"
            )

    @staticmethod
    def _validate_addition(cfg: CfgNode) -> None:
        if not cfg.SEARCH.FROM:
            if cfg.SEARCH.ADAPT.ENABLED:
                raise InputError(
                    "SEARCH.ADAPT.ENABLED is True, allowed without SEARCH.FROM, the finished search that adapts: False"
                )
            return
        check_local("SEARCH.FROM", cfg.SEARCH.FROM)
        allowed = {
            "MODEL.WEIGHTS": ("", "as the supernet is that search's"),
            "SEARCH.ALGORITHM": ("multitask", "Algorithm 4"),
            "SEARCH.TRAIN_WEIGHTS": (True, "as the new heads have to learn; the supernet rests in any case"),
            "SEARCH.WARMUP_DENSITIES": (False, "as the heads are trained on what was found before"),
        }
        for key, (value, why) in allowed.items():
            if get(cfg, key) != value:
                raise InputError(f"{key} is {get(cfg, key)!r}, allowed with SEARCH.FROM: {value!r}, {why}")
        if not 0 < cfg.SEARCH.ARCH_WARMUP_ITERS < cfg.SOLVER.MAX_ITER:
            raise InputError(
                f"SEARCH.ARCH_WARMUP_ITERS is {cfg.SEARCH.ARCH_WARMUP_ITERS}, allowed with SEARCH.FROM: 1 to "
                f"{cfg.SOLVER.MAX_ITER - 1}, the iterations in which new heads are trained before probabilities learn"
            )
        earlier = earlier_tasks(cfg)
        if earlier is not None and earlier.found.size != cost_size(cfg):
            raise InputError(
                f"SEARCH.COST.SIZE is {list(cost_size(cfg))}, allowed with SEARCH.FROM {cfg.SEARCH.FROM}: "
                f"{list(earlier.found.size)}, at which costs were counted there"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width at which costs are counted."""
        return cost_size(self.cfg)

    def build_model(self) -> Search:
        arguments = search_arguments(self.cfg, self.data.info, self.seed, self.earlier)
        if self.earlier is not None:
            kind = AdaptingSearch if self.cfg.SEARCH.ADAPT.ENABLED else AdditionSearch
            return kind(num_earlier=len(self.earlier.heads), **arguments)
        return ALGORITHMS[self.cfg.SEARCH.ALGORITHM](**arguments)

    def describe(self, output_dir: Path) -> None:
        if self.earlier is not None:
            self.earlier.write(output_dir)

    def param_groups(self) -> list[dict[str, Any]]:
        return build_search_groups(self.cfg, self.model)

    @property
    def first_weights(self) -> tuple[str, str]:
        return ("SEARCH.FROM", str(self.earlier.checkpoint)) if self.earlier else super().first_weights

    def load_weights(self, path: str, to_train: bool = True) -> None:
        if self.earlier is not None:
            load_earlier_search(self.model, path)
            if self.cfg.SEARCH.ADAPT.ENABLED:
                self.earlier = replace(self.earlier, metrics=self._first_metrics())
            return
        # Of another search, such as the pretraining, neither its probabilities nor how far it came.
        load_search_weights(self.model, path)

    def records(self) -> Mapping[str, Any]:
        probs = self.model.distribution.learning.tolist()
        return {
            f"probs/{name}": task_probs for name, task_probs in zip(self.model.learning, probs, strict=True)
        }

    def evaluate(self, model: Search) -> dict[str, float]:
        modes = model.most_likely()
        return self._metrics_of(model, self._found_earlier() | {name: modes[name] for name in model.learning})

    def _found_earlier(self) -> dict[str, Topology]:
        """Return the topologies of earlier tasks whose metrics may change."""
        if self.earlier is None or not self.cfg.SEARCH.ADAPT.ENABLED:
            return {}
        return {name: self.earlier.found.tasks[name].topology for name in self.earlier.heads}

    def _first_metrics(self) -> dict[str, float]:
        """Return the first metric of each earlier task, whose fall is measured from it."""
        found = self.judge(self.model).metrics(self._found_earlier())
        first = {
            name: metrics[cast(Task, self.model.tasks[name]).primary_metric]
            for name, metrics in found.items()
        }
        for name, value in first.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{name} of it cannot be measured on DATASETS.TEST {self.cfg.DATASETS.TEST[0]}, allowed with "
                    "SEARCH.ADAPT.ENABLED: a set that labels what the earlier tasks predict"
                )
            logger.info("%s before the first step: %.4f", name, value)
        return first

    def _metrics_of(self, model: Search, topologies: Mapping[str, Topology]) -> dict[str, float]:
        metrics = self.judge(model).metrics(topologies)
        return {f"{task}/{name}": value for task in topologies for name, value in metrics[task].items()}

    def conclude(self, trained: Trained) -> dict[str, float]:
        # Averaged probabilities lag behind; what the search found is in the model itself, whatever weights judge it.
        evals, size = self.cfg.SEARCH.EVAL, self.size
        judge = self.judge(self.model)
        device = device_of(self.model)
        rough = len(judge.networks.statistics)
        stream = (images_to_device(batch, device) for batch in self.data.train_batches())
        with Progress(
            console=trained.console, transient=True, disable=not trained.console.is_terminal
        ) as progress:
            bar = progress.add_task("evaluating topologies", total=1)
            tasks = judge.results(
                decide(
                    self.model,
                    islice(stream, rough),
                    islice(stream, 3 * rough),
                    evals.CANDIDATES,
                    _limits(self.cfg, self.model),
                ),
                evals.RANDOM_TOPOLOGIES,
                self.seed,
                lambda done: progress.update(bar, completed=done),
            )
        earlier = self._earlier_results(judge)
        judged = (*earlier, *tasks) if self.cfg.SEARCH.ADAPT.ENABLED else tasks
        metrics = {f"{task.task}/{name}": value for task in judged for name, value in task.metrics.items()}
        if trained.averaged is not None:
            found = {task.task: task.topology for task in judged}
            averaged = self._metrics_of(cast(Search, trained.averaged), found)
            metrics |= {f"ema/{name}": value for name, value in averaged.items()}
        trained.record(metrics)
        cost = self.model.cost
        results = SearchResults(
            family=self.cfg.MODEL.FBNETV5.FAMILY,
            num_stages=self.cfg.MODEL.FBNETV5.NUM_STAGES,
            size=size,
            iterations=trained.iterations,
            seconds=trained.seconds,
            tasks=(*earlier, *tasks),
            precise_bn_images=sum(len(batch) for batch in judge.networks.statistics) * world_size(),
            eval_images=self.data.num_eval_images(evals.MAX_IMAGES),
            cost_targets=dict(zip(self.model.learning, cost.targets.tolist(), strict=True)) if cost else {},
            cost_metric=self.cfg.SEARCH.COST.METRIC,
            earlier=tuple(self.earlier.heads) if self.earlier else (),
        )
        trained.console.print(search_table(results))
        self._require_band(earlier)
        if is_main():
            write_search_report(trained.output_dir, results, read_history(trained.output_dir))
        barrier()
        return metrics

    def _earlier_results(self, judge: SearchJudge) -> Sequence[TaskResult]:
        """Return what the search in SEARCH.FROM found for its tasks, as it says itself; judged again where its weights
        followed."""
        if self.earlier is None:
            return []
        full = self._flops.network(Topology.full(self.cfg.MODEL.FBNETV5.NUM_STAGES))
        found = [
            TaskResult.of_entry(name, self.earlier.found.tasks[name], full) for name in self.earlier.heads
        ]
        return judge.again(found) if self.cfg.SEARCH.ADAPT.ENABLED else found

    def _require_band(self, earlier: Sequence[TaskResult]) -> None:
        """Raise an InputError if a metric of an earlier task fell by more than SEARCH.ADAPT.BAND."""
        band, before = self.cfg.SEARCH.ADAPT.BAND, self.earlier.metrics if self.earlier else {}
        falls = {task.task: task.fall(before[task.task]) for task in earlier if task.task in before}
        fallen = [task for task in earlier if task.task in falls and not falls[task.task] <= band]
        if not fallen:
            return
        said = ", ".join(
            f"{task.metric_name} of {task.task} was {before[task.task]:.4f} and is {task.metric:.4f} (worse by a share "
            f"of {format_least(falls[task.task])})"
            for task in fallen
        )
        most = format_least(max(falls[task.task] for task in fallen))
        raise InputError(
            f"SEARCH.ADAPT.BAND is {band}, but {said}. What was added is not written to topologies.json, and "
            f"{self.cfg.SEARCH.FROM} is as it was. Begin again in another OUTPUT_DIR, with a lower "
            "SEARCH.ADAPT.LR_FACTOR or without SEARCH.ADAPT.ENABLED; or take the weights that "
            f"{self.cfg.OUTPUT_DIR} has by --eval-only with SEARCH.ADAPT.BAND {most} or more"
        )

    @property
    def _flops(self) -> BlockCosts:
        return block_costs(self.cfg.MODEL.FBNETV5.FAMILY, self.size, "flops")

    def judge(self, model: Search) -> SearchJudge:
        """Return the judge of a search's networks, on SEARCH.EVAL.MAX_IMAGES. Every process must call it."""
        average_batch_norm(model)
        evals = self.cfg.SEARCH.EVAL
        batches = self.data.eval_batches(evals.MAX_IMAGES)
        networks = NetworkJudge(
            model,
            self.data.info,
            self.data.statistics_batches(evals.BN_ITERS),
            # A limited number of images fits into memory, and is not decoded anew for each topology.
            list(batches) if evals.MAX_IMAGES else batches,
        )
        return SearchJudge(networks, self._flops)


def cost_size(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width at which costs are counted: SEARCH.COST.SIZE, the family's own where it is empty."""
    family = build_family(cfg.MODEL.FBNETV5.FAMILY)
    return tuple(cfg.SEARCH.COST.SIZE) or (family.input_size, family.input_size)


def cost_per_block(cfg: CfgNode) -> BlockCosts:
    """Return what the family's parts cost by SEARCH.COST.METRIC.

    Raises:
        FileNotFoundError, ValueError: SEARCH.COST.TABLE is missing, wrong, or given where FLOPs or parameters count.
    """
    family, cost = build_family(cfg.MODEL.FBNETV5.FAMILY), cfg.SEARCH.COST
    if (cost.METRIC == "latency") != bool(cost.TABLE):
        allowed = "a file that d2go_fbnetv5.latency_table wrote" if not cost.TABLE else "nothing"
        raise InputError(
            f"SEARCH.COST.TABLE is {cost.TABLE!r}, allowed with SEARCH.COST.METRIC {cost.METRIC}: {allowed}"
        )
    if not cost.TABLE:
        return block_costs(family, cost_size(cfg), cost.METRIC)
    try:
        return read_latency_table(cost.TABLE, family, cost_size(cfg))
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"SEARCH.COST.TABLE: {error}") from error


def _task_targets(cfg: CfgNode) -> dict[str, float]:
    """Return SEARCH.COST.TASK_TARGETS; an InputError names one that is not in [0, 1]."""
    targets = {}
    for name, given in cfg.SEARCH.COST.TASK_TARGETS.items():
        try:
            targets[name] = to_float(given)  # 4e-1 is a text to YAML
        except MisfitError:
            targets[name] = math.nan
        if not 0 <= targets[name] <= 1:
            raise InputError(f"SEARCH.COST.TASK_TARGETS.{name} is {given!r}, allowed: 0 to 1")
    return targets


def _cost_target(cfg: CfgNode, tasks: Sequence[Task], costs: BlockCosts) -> float:
    """Return the relative cost that is free for the network of a task, or of several that share one."""
    cost = cfg.SEARCH.COST
    budgets = to_budget(as_dict(cost.BUDGET), "SEARCH.COST.BUDGET.")
    given, outputs = _task_targets(cfg), {output for task in tasks for output in task.in_features}
    for name, budget in budgets.items():
        if any(name == task.name for task in tasks):
            try:
                given[name] = costs.target(budget, cfg.MODEL.FBNETV5.NUM_STAGES, outputs)
            except InputError as error:
                raise InputError(f"SEARCH.COST.BUDGET.{name} {error}") from error
    mine = {task.name: given[task.name] for task in tasks if task.name in given}
    if len(set(mine.values())) > 1:
        raise InputError(
            f"SEARCH.COST has targets or budgets for {' and '.join(mine)}, allowed: one, as SEARCH.GROUPS has them "
            "share a network"
        )
    return next(iter(mine.values()), cost.TARGET)


def _limits(cfg: CfgNode, search: Search) -> dict[str, Limit]:
    """Return what SEARCH.COST.BUDGET says that networks may cost, by the first of the tasks that share one."""
    budgets = to_budget(as_dict(cfg.SEARCH.COST.BUDGET), "SEARCH.COST.BUDGET.")
    if not budgets:
        return {}
    costs, limits = cost_per_block(cfg), {}
    matrix = costs.matrix(cfg.MODEL.FBNETV5.NUM_STAGES)
    for group in search.groups:
        for name in budgets.keys() & group:
            fits = partial(_costs_at_most, costs, search.outputs(name), budgets[name])
            limits[group[0]] = Limit(fits, matrix)
    return limits


def _costs_at_most(costs: BlockCosts, outputs: Sequence[str], budget: float, topology: Topology) -> bool:
    return costs.network(topology, outputs) <= budget


def _group_of(cfg: CfgNode, name: str) -> Sequence[str]:
    """Return the tasks that share a task's network, itself among them."""
    return next((group for group in cfg.SEARCH.GROUPS if name in group), [name])


def search_arguments(
    cfg: CfgNode, info: DatasetInfo, seed: int, earlier: EarlierTasks | None = None
) -> dict[str, Any]:
    """Return the arguments of SEARCH.ALGORITHM's class under a validated configuration. Every process must call it.

    Args:
        info: what the data set labels.
        seed: of the sampled topologies.
        earlier: the tasks that come before those of SEARCH.TASKS.
    """
    search = cfg.SEARCH
    supernet = Supernet(cfg.MODEL.FBNETV5.FAMILY, cfg.MODEL.FBNETV5.NUM_STAGES)
    heads, given = dict(earlier.heads) if earlier else {}, as_dict(search.HEADS)
    heads |= {name: given.get(name, {}) for name in search.TASKS}
    tasks = []
    for name, options in heads.items():
        try:
            tasks.append(build_task(name, supernet.channels, info, **options))
        except InputError as error:
            key = f"SEARCH.TASKS, SEARCH.HEADS.{name}"
            key = key if name in search.TASKS else f"SEARCH.FROM, its task {name}"
            raise InputError(f"{key}: {error}") from error
    cost = None
    if search.COST.WEIGHT > 0:
        costs = cost_per_block(cfg)
        cost = CostRegularizer(
            costs.matrix(supernet.num_stages),
            [
                _cost_target(cfg, [task for task in tasks if task.name in _group_of(cfg, name)], costs)
                for name in search.TASKS
            ],
            search.COST.WEIGHT,
            search.COST.EXPECTED,
            search.COST.PRICE == "absolute",
        )
    parts = cfg.SOLVER.GRAD_ACCUM  # each of which counts as a step of the search
    learning = max(0, cfg.SOLVER.MAX_ITER - search.ARCH_WARMUP_ITERS)
    algorithm = ALGORITHMS[search.ALGORITHM]
    options = {
        "groups": search.GROUPS,
        "importance_weighted": search.IMPORTANCE_WEIGHTED,
        "self_normalize": search.SELF_NORMALIZE,
        "warmup_densities": search.WARMUP_DENSITIES,
        "estimator": search.ESTIMATOR or next(iter(algorithm.estimators), ""),
    }
    return {
        "supernet": supernet,
        "tasks": tasks,
        "samples_per_rank": search.SAMPLES_PER_RANK,
        "shared_images": search.SHARED_IMAGES,
        "train_weights": search.TRAIN_WEIGHTS,
        "arch_warmup_iters": search.ARCH_WARMUP_ITERS * parts,
        "arch_decay_iters": learning * parts if search.ARCH_LR_DECAY else 0,
        "init_prob": search.INIT_PROB,
        "loss_window": search.LOSS_WINDOW * parts,
        "cost": cost,
        "prob_min": search.PROB_MIN,
        "seed": seed,
        "preprocess": partial(
            preprocess, pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN), pixel_std=tuple(cfg.MODEL.PIXEL_STD)
        ),
        **{name: options[name] for name in algorithm.options},
    }


def preprocess(
    batch: Sequence[dict[str, Any]], pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> Tensor:
    """Return the supernet's input: N x 3 x H x W, normalised, padded to one size, channels last."""
    return batch_images(batch, pixel_mean, pixel_std).contiguous(memory_format=torch.channels_last)
