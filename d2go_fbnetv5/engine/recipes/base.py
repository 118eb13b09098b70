"""The contract of a kind of model: how it is built, trained and judged.

A new MODEL.META_ARCHITECTURE is one subclass of `Recipe` and one registration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fvcore.common.config import CfgNode
from torch import nn

from d2go_fbnetv5.engine.build import Data, build_param_groups
from d2go_fbnetv5.engine.evaluation import evaluate, precise_batch_norm
from d2go_fbnetv5.models.weights import load_state, read_weights
from d2go_fbnetv5.utils.registry import Registry

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Trained:
    """The end of a training, handed over by a run to be judged.

    Attributes:
        averaged: the model with averaged weights, if MODEL_EMA is on.
        output_dir: written to by process 0 alone.
        iterations, seconds: how long it was trained.
        console: for process 0 alone.
        record: puts the metrics into the history; called before anything is written or printed, as judging took long
            and the rest may fail.
    """

    averaged: nn.Module | None
    output_dir: Path
    iterations: int
    seconds: float
    console: Console
    record: Callable[[dict[str, float]], None] = lambda metrics: None


class Recipe:
    """One kind of model under one configuration.

    The model turns a list of samples into a dict of scalar losses in training, and into a list of output dicts in
    evaluation; it has `evaluator(info)` unless `evaluate` is overridden. Its `after_step()`, if it has one, is
    called after each optimizer step.

    Args:
        cfg: validated by `validate`.
        data: of the run.
        seed: of the run, >= 0.
        model: one that a trainer has built already; by default `build_model` does it.

    Attributes:
        model: on the CPU until the trainer moves it.
        readers: what this kind is of `engine.keys`' kinds of runs, not all of which read every key; None for all.
    """

    model: nn.Module
    readers: Collection[str] | None = None

    def __init__(self, cfg: CfgNode, data: Data, seed: int, model: nn.Module | None = None) -> None:
        self.cfg, self.data, self.seed = cfg, data, seed
        self.model = self.build_model() if model is None else model

    @classmethod
    def validate(cls, cfg: CfgNode, world_size: int) -> None:
        """Check this kind's own keys. Raises ValueError that names the key, the value, and what is allowed."""

    def build_model(self) -> nn.Module:
        raise NotImplementedError

    def describe(self, output_dir: Path) -> None:
        """Leave in a folder what tells how to build the model again. Process 0 calls it before the first step."""

    def check_run(self, output_dir: Path) -> None:
        """Raise an InputError if the run in a folder is one of another model, which can't go on as this one."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, each with its base rate."""
        return build_param_groups(self.cfg, self.model)

    @property
    def first_weights(self) -> tuple[str, str]:
        """Return the key that says which weights a new run starts from, and their file; "" for none."""
        return "MODEL.WEIGHTS", self.cfg.MODEL.WEIGHTS

    def load_weights(self, path: str, to_train: bool = True) -> None:
        """Start from the file of `first_weights`.

        Args:
            to_train: whether what the file has no weights for will be trained.

        Raises:
            FileNotFoundError, InputError: no such file, or its weights are not those of the model.
        """
        load_state(self.model, read_weights(path))

    def records(self) -> Mapping[str, Any]:
        """Further entries of each record in the history. Every process calls it."""
        return {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Metrics of the model, or of an average of its weights, by name. Every process must call it."""
        test = self.cfg.TEST
        evaluator = model.evaluator(self.data.info)
        if not test.PRECISE_BN.ENABLED:
            return evaluate(model, self.data.eval_batches(), evaluator)
        with precise_batch_norm(model, self.data.statistics_batches(test.PRECISE_BN.NUM_ITER)):
            return evaluate(model, self.data.eval_batches(), evaluator)

    def conclude(self, trained: Trained) -> dict[str, float]:
        """Judge the trained model and leave what the user came for. Every process must call it.

        Returns:
            the metrics by name.
        """
        metrics = self.evaluate(self.model)
        if trained.averaged is not None:
            metrics |= {f"ema/{name}": value for name, value in self.evaluate(trained.averaged).items()}
        trained.record(metrics)
        return metrics


RecipeClass = TypeVar("RecipeClass", bound=type[Recipe])
_RECIPES: Registry[type[Recipe]] = Registry("MODEL.META_ARCHITECTURE")


def register_recipe(name: str) -> Callable[[RecipeClass], RecipeClass]:
    """Class decorator: makes a `Recipe` the one of MODEL.META_ARCHITECTURE `name`; a taken name is a ValueError."""

    def register(cls: RecipeClass) -> RecipeClass:
        _RECIPES.add(name, cls)
        return cls

    return register


def get_recipe(name: str) -> type[Recipe]:
    """Return the recipe of a MODEL.META_ARCHITECTURE; an unknown name is a ValueError that lists those known."""
    return _RECIPES[name]
