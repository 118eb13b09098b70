"""One run from configuration to result: train or resume, evaluate, report."""

from __future__ import annotations

import inspect
import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from rich.console import Console
from torch import nn

import d2go_fbnetv5.engine.model_recipes  # noqa: F401 (registers the models for single tasks)
import d2go_fbnetv5.engine.search_recipe  # noqa: F401 (registers "MultitaskSearch")
from d2go_fbnetv5.engine.build import (
    Data,
    build_clipping,
    build_data,
    build_lr_schedule,
    build_optimizer,
    build_precision,
    compile_model,
)
from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.engine.distributed import average_batch_norm, barrier, broadcast, is_distributed, is_main
from d2go_fbnetv5.engine.ema import EMA, EMAHook
from d2go_fbnetv5.engine.history import History, write_evaluation
from d2go_fbnetv5.engine.hooks import AfterStepHook, CheckpointHook, EvalHook, ScheduleHook, Stopwatch
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.engine.log import log_to_file
from d2go_fbnetv5.engine.loop import Hook, TrainLoop, sampled_topologies
from d2go_fbnetv5.engine.rank_agreement import rank_agreement
from d2go_fbnetv5.engine.recipe import Recipe, get_recipe
from d2go_fbnetv5.engine.seeding import seed_all
from d2go_fbnetv5.engine.validate import scale_to_world_size, validate
from d2go_fbnetv5.engine.writers import ConsoleWriter, HistoryWriter, RecordHook, TensorBoardWriter
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"


def prepare(cfg: CfgNode, world_size: int, *, resume: bool = False, eval_only: bool = False) -> CfgNode:
    """Scale a configuration to the number of processes and check all that can be checked without building.

    Returns:
        the configuration to pass to `train`.

    Raises:
        ValueError: names the key, the value, and what is allowed.
    """
    cfg = cfg.clone()
    recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
    scale_to_world_size(cfg, world_size)
    validate(cfg, world_size)
    recipe.validate(cfg, world_size)
    folder = Path(cfg.OUTPUT_DIR)
    _check_writable(folder)
    has_run = any(folder.glob("model_*.pth"))
    if has_run and not resume and not eval_only:
        raise InputError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} already holds a run: go on with it by --resume, or choose another folder"
        )
    if eval_only and not has_run and not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"--eval-only: OUTPUT_DIR {cfg.OUTPUT_DIR} holds no checkpoint and MODEL.WEIGHTS is empty"
        )
    cfg.freeze()
    return cfg


def train(cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> dict[str, float]:
    """Do a run in this process, which is alone or one of an initialised process group.

    Args:
        cfg: from `prepare`.
        resume: go on from the newest checkpoint in OUTPUT_DIR, if there is one.
        eval_only: judge that checkpoint (or MODEL.WEIGHTS where there is none) and rewrite the report.

    Returns:
        the final metrics by name.
    """
    import_modules(cfg)  # a process that was spawned has not loaded the configuration itself
    run = Run(cfg, resume=resume or eval_only)
    if not eval_only:
        run.train()
    return run.conclude()


class Run:
    """Everything of one run, built and perhaps restored; nothing is written before all of it is built.

    Attributes:
        start_iteration: the first iteration to do.
    """

    def __init__(self, cfg: CfgNode, resume: bool = False) -> None:
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)
        self.console = Console(quiet=not is_main())
        self.device = pick_device(cfg.MODEL.DEVICE)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        self.seed = _run_seed(cfg, resume)

        self.data: Data = build_data(cfg, self.seed)
        seed_all(self.seed, iteration=-1)  # the same first weights on every process
        self.recipe: Recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)(cfg, self.data, self.seed)
        self.model = self.recipe.model.to(self.device, memory_format=torch.channels_last)
        compile_model(cfg, self.model)
        self.optimizer = build_optimizer(cfg, self.recipe.param_groups())
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.precision = build_precision(cfg, self.device)
        self.ema = None
        self.stopwatch = Stopwatch()
        state = {"optimizer": self.optimizer, "scaler": self.precision.scaler, "stopwatch": self.stopwatch}
        self.checkpointer = RunCheckpointer(self.model, self.folder, cfg.SOLVER.CHECKPOINT_KEEP, **state)
        # Weights to start from come before the average starts, a checkpoint comes after it.
        candidates = self.checkpointer.candidates() if resume else []
        if cfg.MODEL.WEIGHTS and not candidates:
            self.recipe.load_weights(self.checkpointer, cfg.MODEL.WEIGHTS)
        if cfg.MODEL_EMA.ENABLED:
            self.ema = EMA(self.model, cfg.MODEL_EMA.DECAY, cfg.MODEL_EMA.INCLUDE_BUFFER)
            self.checkpointer.add_checkpointable("ema", self.ema)
        last = self.checkpointer.resume() if candidates else None
        self.start_iteration = 0 if last is None else last + 1
        self._write_config()

    def train(self) -> None:
        """Train up to SOLVER.MAX_ITER."""
        max_iter = self.cfg.SOLVER.MAX_ITER
        if self.start_iteration >= max_iter:
            logger.info("iteration %d of %d is done already", self.start_iteration, max_iter)
            return
        TrainLoop(
            self.distributed_model(),
            self.optimizer,
            self.data.train_batches(self.start_iteration),
            max_iter,
            start_iteration=self.start_iteration,
            hooks=self._hooks(),
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            clip_gradients=build_clipping(self.cfg),
        ).run()
        self.start_iteration = max_iter

    def conclude(self) -> dict[str, float]:
        """Judge the model as it is now and write the results."""
        average_batch_norm(self.model)
        averaged = self.ema.module if self.ema else None
        metrics = self.recipe.conclude(
            averaged, self.folder, self.start_iteration, self.stopwatch.seconds, self.console
        )
        self._record_evaluation(max(self.start_iteration - 1, 0), metrics)
        return metrics

    def _hooks(self) -> list[Hook]:
        """In this order: what changes weights, what tells of it, and then the checkpoint that holds all of it."""
        cfg, start = self.cfg, self.start_iteration
        hooks: list[Hook] = [self.stopwatch, ScheduleHook(build_lr_schedule(cfg), self.base_lrs)]
        if hasattr(self.model, "after_step"):
            hooks.append(AfterStepHook())
        if self.ema is not None:
            hooks.append(EMAHook(self.ema))
        writers = []
        if is_main():
            console = ConsoleWriter(self.console, start, cfg.SOLVER.MAX_ITER)
            hooks.append(console)
            history = HistoryWriter(History(self.folder, start))
            writers = [history, TensorBoardWriter(self.folder, start), console]
        hooks.append(RecordHook(writers, cfg.WRITER_PERIOD, self._records))

        def evaluate(iteration: int) -> None:
            average_batch_norm(self.model)
            metrics = self.recipe.evaluate(self.model)
            for writer in writers:
                writer.write({"iteration": iteration, **_named("eval", metrics)})

        hooks.append(EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        hooks.append(CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        return hooks

    def _records(self) -> Mapping[str, Any]:
        records = self.recipe.records()
        return {**records, **rank_agreement(records, sampled_topologies(self.model))}

    def distributed_model(self) -> nn.Module:
        """The model as it is trained: in DistributedDataParallel where there are several processes."""
        if not is_distributed():
            return self.model
        # Each process keeps batch-norm statistics of its own while it trains, and they are averaged where they
        # are used (`average_batch_norm`); all other buffers are equal by construction.
        ddp = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters  # in later torch
        return ddp(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=self.cfg.MODEL.DDP_FIND_UNUSED_PARAMETERS,
            **{"forward_sync_buffers" if renamed else "broadcast_buffers": False},
        )

    def _write_config(self) -> None:
        if is_main():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                cfg = self.cfg.clone()
                cfg.defrost()
                cfg.SEED = self.seed  # so that a run with a drawn seed can be resumed and repeated
                write_atomically(self.folder / CONFIG_FILE, cfg.dump())
                self.recipe.describe(self.folder)
            except OSError as error:
                raise InputError(f"OUTPUT_DIR {self.folder} cannot be written: {error.strerror}") from error
            log_to_file(self.folder)
        barrier()

    def _record_evaluation(self, iteration: int, metrics: dict[str, float]) -> None:
        if is_main():
            write_evaluation(self.folder, {"iteration": iteration, **_named("eval", metrics)})
        barrier()


def _named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def pick_device(name: str) -> torch.device:
    """MODEL.DEVICE; "cuda" is this process' own GPU."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _run_seed(cfg: CfgNode, resume: bool) -> int:
    """SEED, or where it is negative the one that the run to resume has, or a new one; equal on all processes."""
    if cfg.SEED >= 0:
        return cfg.SEED
    seed = random.SystemRandom().randrange(2**31)
    file = Path(cfg.OUTPUT_DIR, CONFIG_FILE)
    if resume and file.is_file():
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        seed = stored.get("SEED", seed) if isinstance(stored, dict) else seed
    return broadcast(seed)


def _check_writable(folder: Path) -> None:
    """Without leaving anything behind, as the rest of the configuration may yet be refused."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"OUTPUT_DIR {folder} cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"OUTPUT_DIR {folder} cannot be written: no permission for {existing}")
