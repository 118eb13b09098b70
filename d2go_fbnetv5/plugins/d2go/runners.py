"""D2Go runners: the search, and the training of what it found."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from d2go.checkpoint.fsdp_checkpoint import FSDPCheckpointer
from d2go.config import temp_defrost
from d2go.data.dataset_mappers.build import D2GO_DATA_MAPPER_REGISTRY
from d2go.modeling import ema
from d2go.runner import GeneralizedRCNNRunner
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.solver import LRMultiplier
from fvcore.common.config import CfgNode
from rich.console import Console
from torch import nn

from d2go_fbnetv5.engine.build import build_lr_schedule, compile_model
from d2go_fbnetv5.engine.evaluation import precise_batch_norm
from d2go_fbnetv5.engine.hooks import Stopwatch
from d2go_fbnetv5.engine.recipes.base import Trained
from d2go_fbnetv5.engine.recipes.search import SearchRecipe
from d2go_fbnetv5.models.weights import averaged_weights
from d2go_fbnetv5.plugins.d2go.checks import check_d2go
from d2go_fbnetv5.plugins.d2go.config import extend_config
from d2go_fbnetv5.plugins.d2go.quantization import allow_zero_norms
from d2go_fbnetv5.plugins.d2go.visualization import visualization_evaluator
from d2go_fbnetv5.plugins.detectron2.checkpoint import StartsFromSearches
from d2go_fbnetv5.plugins.detectron2.checks import check_run
from d2go_fbnetv5.plugins.detectron2.convert import adapt_weights, require_trained
from d2go_fbnetv5.plugins.detectron2.datasets import (
    EVALUATOR_TYPE,
    SampleMapper,
    TrainLoader,
    open_data,
    read_by_us,
    register_datasets,
)
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator
from d2go_fbnetv5.plugins.detectron2.hooks import append_record, find_search
from d2go_fbnetv5.plugins.detectron2.meta_arch import describe_model, set_numbers_of_classes
from d2go_fbnetv5.plugins.detectron2.samples import to_detectron2
from d2go_fbnetv5.plugins.detectron2.trainer import by_task
from d2go_fbnetv5.reports.history import write_evaluation
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import average_batch_norm, barrier, is_main, unwrap
from d2go_fbnetv5.utils.seeding import seed_all


class FBNetV5Checkpointer(StartsFromSearches, FSDPCheckpointer):
    """D2Go's checkpointer for a model with our backbone or for a search; see `StartsFromSearches`.

    A file of our own trainer also gives D2Go the averaged weights, where these are asked for.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if not path and checkpointables is None:  # to judge or export, and no training will follow
            self.model.untrained_weights = tuple(self.model.state_dict())
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        if "ema_state" in self.checkpointables and "ema" in checkpoint:
            averaged = adapt_weights(averaged_weights(checkpoint.pop("ema")), self.model.state_dict())
            average = ema.EMAState.FromModel(unwrap(self.model))  # which has buffers that are not saved, too
            checkpoint["ema_state"] = {**average.state, **averaged}
        allow_zero_norms(self.model)
        return incompatible


@D2GO_DATA_MAPPER_REGISTRY.register()
def FBNetV5DatasetMapper(cfg: CfgNode, is_train: bool, **_: Any) -> SampleMapper:  # noqa: N802 (D2Go's names)
    """Map samples of the multitask (pseudo-labelled) format and all other sets of FBNETV5_DATA.

    D2Go's transforms are not used: a sample's label map and boxes go through one transform with its image.
    """
    return SampleMapper.from_config(cfg, is_train)


class FBNetV5Runner(GeneralizedRCNNRunner):
    """Trains, evaluates and exports classifiers, segmentation models and detectors on the searched backbone.

    Sets of FBNETV5_DATA and our built-in ones are read as in our own trainer, others by D2Go's own loaders.
    """

    @classmethod
    def get_default_cfg(cls) -> CfgNode:
        return extend_config(super().get_default_cfg())

    @classmethod
    def from_config(cls, cfg: CfgNode, eval_only: bool = False) -> None:
        """Refuse D2Go's lightning_train_net, which asks a task of Lightning's for this."""
        raise InputError(
            f"lightning_train_net has the runner {cls.__name__}, allowed there: tasks of Lightning; train_net takes it"
        )

    def register(self, cfg: CfgNode) -> None:
        """Data sets are registered here, because D2Go spawns its workers; the numbers of classes follow from them.

        Raises:
            ValueError: an impossible value; it names the key and what is allowed.
        """
        super().register(cfg)
        register_datasets(cfg)
        if read_by_us(cfg):
            with temp_defrost(cfg):
                set_numbers_of_classes(cfg)

    def build_model(self, cfg: CfgNode, eval_only: bool = False) -> nn.Module:
        check_run(cfg)
        check_d2go(cfg)
        if read_by_us(cfg):
            seed_all(cfg.SEED, iteration=-1)  # the same first weights on every process, and in every trainer
        model = super().build_model(cfg, eval_only)
        allow_zero_norms(model)
        if eval_only:  # what is exported is left as it is
            if cfg.MODEL.WEIGHTS:
                require_trained(model)
        else:
            compile_model(cfg, model)
        return model

    def build_checkpointer(self, cfg: CfgNode, model: nn.Module, save_dir: str, **kwargs: Any) -> Any:
        kwargs.update(ema.may_get_ema_checkpointer(cfg, model))
        return FBNetV5Checkpointer(model, save_dir=save_dir, **kwargs)

    def do_train(self, cfg: CfgNode, model: nn.Module, resume: bool) -> dict[str, CfgNode]:
        if is_main():
            describe_model(cfg)
        return super().do_train(cfg, model, resume)

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        """Our own trainer's schedules: Detectron2's and WarmupPolyLR."""
        return LRMultiplier(optimizer, build_lr_schedule(cfg), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_detection_train_loader(cls, cfg: CfgNode, *args: Any, mapper: Any = None, **kwargs: Any) -> Any:
        if mapper is None and read_by_us(cfg):
            return TrainLoader(open_data(cfg))
        return super().build_detection_train_loader(cfg, *args, mapper=mapper, **kwargs)

    @staticmethod
    def get_mapper(cfg: CfgNode, is_train: bool) -> Any:
        if read_by_us(cfg):
            return SampleMapper.from_config(cfg, is_train)
        return GeneralizedRCNNRunner.get_mapper(cfg, is_train)

    @staticmethod
    def get_visualization_evaluator() -> Any:
        return visualization_evaluator

    @staticmethod
    def get_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluators:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("evaluator_type") == EVALUATOR_TYPE:
            return DatasetEvaluators([SampleEvaluator.for_info(metadata.info)])
        return GeneralizedRCNNRunner.get_evaluator(cfg, dataset_name, output_folder)

    def do_test(self, cfg: CfgNode, model: nn.Module, train_iter: int | None = None) -> dict[str, Any]:
        require_trained(model)
        average = getattr(unwrap(model), "ema_state", None)
        if average is not None and not average.has_inited():
            raise InputError(
                "MODEL_EMA.ENABLED is True, allowed to judge MODEL.WEIGHTS without averaged weights: False"
            )
        return super().do_test(cfg, model, train_iter)

    def _do_test(
        self, cfg: CfgNode, model: nn.Module, train_iter: int | None = None, model_tag: str = "default"
    ):
        average_batch_norm(model)
        precise = cfg.TEST.PRECISE_BN
        if not (precise.ENABLED and read_by_us(cfg)):
            return super()._do_test(cfg, model, train_iter, model_tag)
        batches = [
            [to_detectron2(sample, training=True) for sample in batch]
            for batch in open_data(cfg).statistics_batches(precise.NUM_ITER)
        ]
        with precise_batch_norm(model, batches):
            return super()._do_test(cfg, model, train_iter, model_tag)


class MultitaskSearchRunner(FBNetV5Runner):
    """Algorithm 4 on D2Go's trainer; ends with the report that our own trainer writes."""

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
        require_trained(model)
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
                Trained(None, folder, last + 1, self.stopwatch.seconds, Console(quiet=not is_main()))
            )
            if is_main():
                write_evaluation(folder, {"iteration": last, **_named(metrics)})
            barrier()
        return OrderedDict(default={cfg.DATASETS.TEST[0]: by_task(metrics)})


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in metrics.items()}
