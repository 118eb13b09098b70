"""D2Go runners: the search, and the training of what it found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from d2go.config import temp_defrost
from d2go.modeling import ema
from d2go.runner import GeneralizedRCNNRunner
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.config import CfgNode
from rich.console import Console
from torch import nn

from d2go_fbnetv5.engine.build import Data, build_data, build_lr_schedule, compile_model
from d2go_fbnetv5.engine.distributed import average_batch_norm, barrier, is_main
from d2go_fbnetv5.engine.evaluation import precise_batch_norm
from d2go_fbnetv5.engine.history import write_evaluation
from d2go_fbnetv5.engine.hooks import Stopwatch
from d2go_fbnetv5.engine.model_recipes import class_names, searched_network
from d2go_fbnetv5.engine.recipe import get_recipe
from d2go_fbnetv5.engine.search_recipe import SearchRecipe
from d2go_fbnetv5.engine.seeding import seed_all
from d2go_fbnetv5.engine.validate import validate
from d2go_fbnetv5.plugins.d2go.checkpoint import FBNetV5Checkpointer
from d2go_fbnetv5.plugins.d2go.config import extend_config
from d2go_fbnetv5.plugins.d2go.hooks import append_record, find_search
from d2go_fbnetv5.plugins.detectron2.datasets import (
    EVALUATOR_TYPE,
    SampleMapper,
    is_ours,
    register_datasets,
)
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator
from d2go_fbnetv5.plugins.detectron2.meta_arch import dataset_info
from d2go_fbnetv5.plugins.detectron2.samples import to_detectron2
from d2go_fbnetv5.utils.errors import InputError

OUR_META_ARCHITECTURES = ("ImageClassifier", "LiteMaskFormer", "LiteRCNN", "MultitaskSearch")


class TrainLoader:
    """Endless batches for D2Go's trainer, which start at the iteration that it starts with.

    Order and augmentation are the embedded host's: a function of (SEED, position), the same for any number of
    workers, and after a resume.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.data.train_batches(get_event_storage().iter):
            yield [to_detectron2(sample, training=True) for sample in batch]


class FBNetV5Runner(GeneralizedRCNNRunner):
    """Trains, evaluates and exports classifiers, segmentation models and detectors on the searched backbone.

    Sets of FBNETV5_DATA and our built-in ones are read as in the embedded host, others by D2Go's own loaders.
    """

    @classmethod
    def get_default_cfg(cls) -> CfgNode:
        return extend_config(super().get_default_cfg())

    def register(self, cfg: CfgNode) -> None:
        """Data sets are registered here, because D2Go spawns its workers; the numbers of classes follow from them.

        Raises:
            ValueError: an impossible value; it names the key and what is allowed.
        """
        super().register(cfg)
        register_datasets(cfg)
        if _ours(cfg):
            info = dataset_info(cfg)
            with temp_defrost(cfg):
                cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(info.box_names)
                cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(info.sem_seg_names)

    def build_model(self, cfg: CfgNode, eval_only: bool = False) -> nn.Module:
        if _ours(cfg):
            self._validate(cfg)
            seed_all(cfg.SEED, iteration=-1)  # the same first weights on every process, and in every host
        model = super().build_model(cfg, eval_only)
        if not eval_only:  # what is exported is left as it is
            compile_model(cfg, model)
        return model

    def _validate(self, cfg: CfgNode) -> None:
        if cfg.SEED < 0:
            raise InputError(
                f"SEED is {cfg.SEED}, allowed under D2Go: 0 or more, so that a run can be resumed"
            )
        validate(cfg, comm.get_world_size())
        if cfg.MODEL.META_ARCHITECTURE in OUR_META_ARCHITECTURES:
            get_recipe(cfg.MODEL.META_ARCHITECTURE).validate(cfg, comm.get_world_size())
        if cfg.MODEL.META_ARCHITECTURE == "LiteRCNN":
            class_names(cfg, dataset_info(cfg))  # the other models ask for theirs when they are built

    def build_checkpointer(self, cfg: CfgNode, model: nn.Module, save_dir: str, **kwargs: Any) -> Any:
        kwargs.update(ema.may_get_ema_checkpointer(cfg, model))
        return FBNetV5Checkpointer(model, save_dir=save_dir, **kwargs)

    def do_train(self, cfg: CfgNode, model: nn.Module, resume: bool) -> dict[str, CfgNode]:
        # The embedded host has the same models under the same names, so its `predict` opens the folder.
        if is_main() and cfg.MODEL.META_ARCHITECTURE in ("ImageClassifier", "LiteMaskFormer"):
            recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
            network = searched_network(cfg, class_names(cfg, dataset_info(cfg)))
            network.write(cfg.OUTPUT_DIR, recipe.task, recipe.kind.in_features)
        return super().do_train(cfg, model, resume)

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        """The embedded host's schedules: Detectron2's and WarmupPolyLR."""
        return LRMultiplier(optimizer, build_lr_schedule(cfg), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_detection_train_loader(cls, cfg: CfgNode, *args: Any, mapper: Any = None, **kwargs: Any) -> Any:
        if mapper is None and _ours(cfg):
            return TrainLoader(open_data(cfg))
        return super().build_detection_train_loader(cfg, *args, mapper=mapper, **kwargs)

    @staticmethod
    def get_mapper(cfg: CfgNode, is_train: bool) -> Any:
        if _ours(cfg):
            return SampleMapper.from_config(cfg, is_train)
        return GeneralizedRCNNRunner.get_mapper(cfg, is_train)

    @staticmethod
    def get_visualization_evaluator() -> None:
        """None: D2Go's draws from dicts that name an image file, which samples do not."""

    @staticmethod
    def get_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluators:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("evaluator_type") == EVALUATOR_TYPE:
            return DatasetEvaluators([SampleEvaluator.for_info(metadata.info)])
        return GeneralizedRCNNRunner.get_evaluator(cfg, dataset_name, output_folder)

    def _do_test(
        self, cfg: CfgNode, model: nn.Module, train_iter: int | None = None, model_tag: str = "default"
    ):
        average_batch_norm(model)
        precise = cfg.TEST.PRECISE_BN
        if not (precise.ENABLED and _ours(cfg)):
            return super()._do_test(cfg, model, train_iter, model_tag)
        batches = [
            [to_detectron2(sample, training=False) for sample in batch]
            for batch in open_data(cfg).statistics_batches(precise.NUM_ITER)
        ]
        with precise_batch_norm(model, batches):
            return super()._do_test(cfg, model, train_iter, model_tag)


class MultitaskSearchRunner(FBNetV5Runner):
    """Algorithm 4 on D2Go's trainer; ends with the report that the embedded host writes."""

    def __init__(self) -> None:
        super().__init__()
        self.stopwatch = Stopwatch()
        self._training = False

    @classmethod
    def get_default_cfg(cls) -> CfgNode:
        cfg = super().get_default_cfg()
        cfg.MODEL.META_ARCHITECTURE = "MultitaskSearch"
        return cfg

    def build_checkpointer(self, cfg: CfgNode, model: nn.Module, save_dir: str, **kwargs: Any) -> Any:
        return super().build_checkpointer(cfg, model, save_dir, stopwatch=self.stopwatch, **kwargs)

    def do_train(self, cfg: CfgNode, model: nn.Module, resume: bool) -> dict[str, CfgNode]:
        self._training = True
        self.stopwatch.start()
        try:
            return super().do_train(cfg, model, resume)
        finally:
            self.stopwatch.close()
            self._training = False

    def do_test(self, cfg: CfgNode, model: nn.Module, train_iter: int | None = None) -> dict[str, Any]:
        """Metrics of the most likely topologies; after the training also the report."""
        search = find_search(model)
        recipe = SearchRecipe(cfg, open_data(cfg), cfg.SEED, search)
        last = cfg.SOLVER.MAX_ITER - 1 if train_iter is None else train_iter
        folder = Path(cfg.OUTPUT_DIR)
        if self._training:
            metrics = recipe.evaluate(search)
            if is_main():
                append_record(folder, {"iteration": last, **_named(metrics)})
        else:
            metrics = recipe.conclude(
                None, folder, last + 1, self.stopwatch.seconds, Console(quiet=not is_main())
            )
            if is_main():
                write_evaluation(folder, {"iteration": last, **_named(metrics)})
            barrier()
        results: dict[str, dict[str, float]] = {}
        for name, value in metrics.items():
            task, metric = name.split("/", 1)
            results.setdefault(task, {})[metric] = value
        return OrderedDict(default={cfg.DATASETS.TEST[0]: results})


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in metrics.items()}


def open_data(cfg: CfgNode) -> Data:
    """The data of a run, of sets that the catalog has open."""
    return build_data(cfg, cfg.SEED, lambda _, name: DatasetCatalog.get(name))


def _ours(cfg: CfgNode) -> bool:
    return all(is_ours(cfg, name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
