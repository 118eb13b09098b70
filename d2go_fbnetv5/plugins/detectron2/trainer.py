"""Detectron2's trainer with what a search, its results and our keys need."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator, SemSegEvaluator
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from rich.console import Console
from torch import nn

from d2go_fbnetv5.engine.build import build_lr_schedule, compile_model
from d2go_fbnetv5.engine.hooks import Stopwatch
from d2go_fbnetv5.engine.recipes.base import Trained
from d2go_fbnetv5.engine.recipes.search import SearchRecipe
from d2go_fbnetv5.engine.validate import scale_to_world_size
from d2go_fbnetv5.plugins.detectron2.checkpoint import FBNetV5Checkpointer
from d2go_fbnetv5.plugins.detectron2.checks import check_detectron2_alone, check_run
from d2go_fbnetv5.plugins.detectron2.convert import require_trained
from d2go_fbnetv5.plugins.detectron2.datasets import (
    SampleMapper,
    TrainLoader,
    is_ours,
    open_data,
    read_by_us,
    register_datasets,
)
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator
from d2go_fbnetv5.plugins.detectron2.hooks import ProjectionHook, SearchRecordHook, SeedHook, find_search
from d2go_fbnetv5.plugins.detectron2.meta_arch import describe_model, set_numbers_of_classes
from d2go_fbnetv5.plugins.detectron2.solver import build_optimizer
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.seeding import seed_all

# Of sets that are not ours; there are more, which a subclass names in ``build_evaluator``.
_EVALUATORS = {"coco": COCOEvaluator, "lvis": LVISEvaluator, "sem_seg": SemSegEvaluator}


class FBNetV5Trainer(DefaultTrainer):
    """`DefaultTrainer` for a search and for models on the searched backbone, without D2Go.

    A search's probabilities get their own rate, no decay and no momentum, and are kept in their range; it ends with
    the report that our own trainer writes. MODEL.WEIGHTS may be a search, a supernet, or a model of any trainer.
    Optimizer and schedule are ours (SOLVER.OPTIMIZER, LR_MULTIPLIER_OVERWRITE, WarmupPolyLR). Sets of FBNETV5_DATA are
    registered, read and judged as in our own trainer, others read as by DefaultTrainer and, where they are of COCO's or
    LVIS' kind or label maps, judged by Detectron2's evaluators.

    Raises:
        ValueError: an impossible value, or a key that Detectron2's trainer would pass over.
    """

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        register_datasets(cfg)
        scale_to_world_size(cfg, comm.get_world_size())
        check_detectron2_alone(cfg)
        check_run(cfg)
        if read_by_us(cfg):
            set_numbers_of_classes(cfg)
        self.stopwatch = Stopwatch()
        self._loaded = False
        super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        if read_by_us(cfg):
            seed_all(cfg.SEED, iteration=-1)  # the same first weights in every trainer
        model = super().build_model(cfg)
        compile_model(cfg, model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return LRMultiplier(optimizer, build_lr_schedule(cfg), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return TrainLoader(open_data(cfg)) if read_by_us(cfg) else super().build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        if is_ours(cfg, dataset_name):
            mapper = SampleMapper.from_config(cfg, is_train=False)
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        if is_ours(cfg, dataset_name):
            return SampleEvaluator.for_info(MetadataCatalog.get(dataset_name).info)
        build = _EVALUATORS.get(MetadataCatalog.get(dataset_name).get("evaluator_type"))
        if build is None:
            return super().build_evaluator(cfg, dataset_name)
        return build(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR, "inference", dataset_name)))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        require_trained(model)
        if cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch" and evaluators is None:
            return by_task(SearchRecipe(cfg, open_data(cfg), cfg.SEED, find_search(model)).evaluate(model))
        return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer's constructor makes its checkpointer just before the hooks, one of which saves by it.
        self.checkpointer = FBNetV5Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self), stopwatch=self.stopwatch
        )
        ours: list[HookBase] = [SeedHook(self.cfg.SEED)] if self.cfg.SEED >= 0 else []
        if self._searches:
            ours += [ProjectionHook(), SearchRecordHook(self.cfg.OUTPUT_DIR, self.cfg.WRITER_PERIOD)]
        theirs = super().build_hooks()
        for hook in theirs:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_to_keep = self.cfg.SOLVER.CHECKPOINT_KEEP
            elif isinstance(hook, hooks.PeriodicWriter):
                hook._period = self.cfg.WRITER_PERIOD  # a second one would open metrics.json twice
        return [*ours, *theirs]

    @property
    def _searches(self) -> bool:
        return self.cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch"

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self._loaded = True

    def train(self) -> Any:
        """Train up to SOLVER.MAX_ITER; a search then writes its report into OUTPUT_DIR.

        Raises:
            ValueError: MODEL.WEIGHTS is set, and nothing has loaded it.
        """
        if self.cfg.MODEL.WEIGHTS and not self._loaded:
            raise InputError(
                f"MODEL.WEIGHTS is {self.cfg.MODEL.WEIGHTS!r}, but resume_or_load() was not called before train()"
            )
        if comm.is_main_process():
            describe_model(self.cfg)
        self.stopwatch.start()
        results = super().train()
        self.stopwatch.close()
        if self._searches:
            search = find_search(self.model)
            SearchRecipe(self.cfg, open_data(self.cfg), self.cfg.SEED, search).conclude(
                Trained(None, Path(self.cfg.OUTPUT_DIR), self.max_iter, self.stopwatch.seconds, Console())
            )
        return results


def by_task(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """Metrics such as "det/AP" as {"det": {"AP": ...}}."""
    results: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        task, metric = name.split("/", 1)
        results.setdefault(task, {})[metric] = value
    return results
