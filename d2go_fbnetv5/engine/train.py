"""One run from configuration to result: train or resume, evaluate, report."""

from __future__ import annotations

import inspect
import logging
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from rich.console import Console
from torch import nn

import d2go_fbnetv5.engine.recipes.models  # noqa: F401 (registers the models for single tasks)
import d2go_fbnetv5.engine.recipes.search  # noqa: F401 (registers "MultitaskSearch")
from d2go_fbnetv5.engine.build import (
    Data,
    build_clipping,
    build_data,
    build_lr_schedule,
    build_optimizer,
    build_precision,
    compile_model,
)
from d2go_fbnetv5.engine.checkpoint import OptimizerState, RunCheckpointer, list_checkpoints
from d2go_fbnetv5.engine.continuing import (
    CONFIG_FILE,
    Classes,
    check_continued,
    is_of_a_run,
    stored_config,
)
from d2go_fbnetv5.engine.ema import EMA, EMAHook
from d2go_fbnetv5.engine.hooks import AfterStepHook, CheckpointHook, EvalHook, ScheduleHook, Stopwatch
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.engine.log import log_to_file
from d2go_fbnetv5.engine.loop import Hook, TrainLoop, sampled_topologies
from d2go_fbnetv5.engine.precision import choose_kernels
from d2go_fbnetv5.engine.recipes.base import Recipe, Trained, get_recipe
from d2go_fbnetv5.engine.validate import check_read, scale_to_world_size, validate
from d2go_fbnetv5.engine.writers import (
    ConsoleWriter,
    HistoryWriter,
    RecordHook,
    StepMeans,
    TensorBoardWriter,
    Writer,
)
from d2go_fbnetv5.reports.history import History, write_evaluation
from d2go_fbnetv5.reports.rank_agreement import rank_agreement
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import FolderLock, remove_rests_in, write_atomically
from d2go_fbnetv5.utils.ranks import average_batch_norm, barrier, broadcast, is_distributed, is_main
from d2go_fbnetv5.utils.seeding import seed_all
from d2go_fbnetv5.utils.text_files import check_local

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 15  # processes of a run whose launcher was killed end by themselves within seconds


def prepare(cfg: CfgNode, world_size: int, *, resume: bool = False, eval_only: bool = False) -> CfgNode:
    """Scale a configuration to the number of processes and check all that can be checked without building.

    Returns:
        the configuration to pass to `train`.

    Raises:
        ValueError: names the key, the value, and what is allowed.
    """
    cfg = cfg.clone()
    recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
    goes_on = (resume or eval_only) and is_of_a_run(cfg.OUTPUT_DIR)
    check_read(cfg, recipe.readers, stored_config(cfg.OUTPUT_DIR) if goes_on else None)
    scale_to_world_size(cfg, world_size)
    validate(cfg, world_size)
    recipe.validate(cfg, world_size)
    check_local("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    check_local("OUTPUT_DIR", cfg.OUTPUT_DIR)
    folder = Path(cfg.OUTPUT_DIR)
    _check_writable(folder)
    has_run = check_new(folder, resume or eval_only)
    if has_run:
        check_continued(cfg, eval_only)
    elif eval_only and not cfg.MODEL.WEIGHTS:
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
    run = Run(cfg, resume=resume, eval_only=eval_only)
    try:
        if not eval_only:
            run.train()
        return run.conclude()
    finally:
        run.close()


class Run:
    """Everything of one run, built and perhaps restored; nothing is written before all of it is built.

    The folder is this run's, for as long as the process lives or until `close`.

    Args:
        cfg: from `prepare`.
        resume: go on from the newest checkpoint in OUTPUT_DIR, if there is one.
        eval_only: restore that checkpoint, but for what only training needs, and leave what describes the run as it is.

    Attributes:
        start_iteration: the first iteration to do.
        changed: values of the configuration that are not those of the run that goes on, by key.
    """

    def __init__(self, cfg: CfgNode, resume: bool = False, eval_only: bool = False) -> None:
        self.cfg, self.folder, self.eval_only = cfg, Path(cfg.OUTPUT_DIR), eval_only
        self.console = Console(quiet=not is_main())
        self.device = pick_device(cfg.MODEL.DEVICE)
        choose_kernels(
            self.device, cfg.FLOAT32_PRECISION, cfg.SOLVER.DETERMINISTIC, benchmark=cfg.CUDNN_BENCHMARK
        )
        self.seed = _run_seed(cfg, resume or eval_only)

        self.data: Data = build_data(cfg, self.seed)
        seed_all(self.seed, iteration=-1)  # the same first weights on every process
        self.recipe: Recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)(cfg, self.data, self.seed)
        self.model = self.recipe.model.to(self.device).to(memory_format=torch.channels_last)
        compile_model(cfg, self.model)
        self.optimizer = build_optimizer(cfg, self.recipe.param_groups())
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.precision = build_precision(cfg, self.device)
        self.ema: EMA | None = None
        self.stopwatch, self.means = Stopwatch(), StepMeans()
        state = {
            "stopwatch": self.stopwatch,
            "classes": Classes(self.recipe.data.info, ", ".join(cfg.DATASETS.TRAIN)),
        }
        if not eval_only:
            state |= {
                "optimizer": OptimizerState(self.optimizer),
                "scaler": self.precision.scaler,
                "means": self.means,
            }
        self.checkpointer = RunCheckpointer(self.model, self.folder, cfg.SOLVER.CHECKPOINT_KEEP, **state)
        self.lock: FolderLock | None = None
        try:
            self._begin(resume or eval_only)
        except BaseException:
            self.close()
            raise

    def _begin(self, go_on: bool) -> None:
        """Restore what there is, in a folder that is ours; a new run's is made last."""
        cfg = self.cfg
        if go_on:
            self._claim(go_on)
        # Weights to start from come before the average starts, a checkpoint comes after it.
        candidates = list_checkpoints(self.folder) if go_on else []
        key, weights = self.recipe.first_weights
        if weights and not candidates:
            try:
                self.recipe.load_weights(weights, to_train=not self.eval_only)
            except (InputError, FileNotFoundError) as error:
                raise type(error)(f"{key}: {error}") from error
        if cfg.MODEL_EMA.ENABLED:
            self.ema = EMA(self.model, cfg.MODEL_EMA.DECAY, cfg.MODEL_EMA.INCLUDE_BUFFER)
            self.checkpointer.add_checkpointable("ema", self.ema)
        if candidates:
            self.recipe.check_run(self.folder)
        last = self.checkpointer.resume() if candidates else None
        self.start_iteration = 0 if last is None else last + 1
        if self.start_iteration > cfg.SOLVER.MAX_ITER and not self.eval_only:
            raise InputError(
                f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, allowed with --resume: {self.start_iteration} or more, as "
                f"the run in {cfg.OUTPUT_DIR} has done so many iterations by its last checkpoint"
            )
        self.changed = check_continued(cfg, self.eval_only) if candidates else {}
        for key, value in self.changed.items():
            logger.info("%s is %r now, other than when the run was started", key, value)
        if not go_on:
            self._claim(go_on)
        if not (self.eval_only and candidates):
            self._write_config()
        if is_main():
            log_to_file(self.folder)
        barrier()

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
            grad_accum=self.cfg.SOLVER.GRAD_ACCUM,
        ).run()
        self.start_iteration = max_iter

    def conclude(self) -> dict[str, float]:
        """Judge the model as it is now and write the results."""
        self._average_statistics()
        return self.recipe.conclude(
            Trained(
                self.ema.module if self.ema else None,
                self.folder,
                self.start_iteration,
                self.stopwatch.seconds,
                self.console,
                self._record_evaluation,
            )
        )

    def _hooks(self) -> list[Hook]:
        """In this order: what changes weights, what tells of it, and then the checkpoint that holds all of it."""
        cfg, start = self.cfg, self.start_iteration
        hooks: list[Hook] = [self.stopwatch, ScheduleHook(build_lr_schedule(cfg), self.base_lrs)]
        if hasattr(self.model, "after_step"):
            hooks.append(AfterStepHook())
        if self.ema is not None:
            hooks.append(EMAHook(self.ema))
        writers: list[Writer] = []
        if is_main():
            console = ConsoleWriter(self.console, start, cfg.SOLVER.MAX_ITER)
            hooks.append(console)
            history = HistoryWriter(History(self.folder, start))
            writers = [history, TensorBoardWriter(self.folder, start), console]
        hooks.append(RecordHook(writers, cfg.WRITER_PERIOD, self._records, self.means))

        def evaluate(iteration: int) -> None:
            self._average_statistics()
            metrics = self.recipe.evaluate(self.model)
            for writer in writers:
                writer.write({"iteration": iteration, **_named("eval", metrics)})

        hooks.append(EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        hooks.append(CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        return hooks

    def _average_statistics(self) -> None:
        """Let what is evaluated have seen the images of all processes, as has what `RunCheckpointer` stores."""
        average_batch_norm(self.model, *([self.ema] if self.ema else []))

    def _records(self) -> Mapping[str, Any]:
        records = self.recipe.records()
        return {**records, **rank_agreement(records, sampled_topologies(self.model))}

    def distributed_model(self) -> nn.Module:
        """Return the model as it is trained: in DistributedDataParallel where there are several processes."""
        if not is_distributed():
            return self.model
        # Each process keeps batch-norm statistics of its own while it trains, and they are averaged where they
        # are used (`average_batch_norm`); all other buffers are equal by construction.
        ddp = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters  # in later torch
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return ddp(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=self.cfg.MODEL.DDP_FIND_UNUSED_PARAMETERS,
            **buffers,
        )

    def _claim(self, go_on: bool) -> None:
        """Make the folder this run's alone. Every process must call it.

        Raises:
            InputError: another run has it, or has left something there in the meantime, or it cannot be written.
        """
        problem = None
        if is_main():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock = FolderLock(self.folder)
                problem = self._wait_for(self.lock)
                check_new(self.folder, go_on)
                remove_rests_in(self.folder)
            except InputError as error:
                problem = str(error)
            except OSError as error:
                problem = f"OUTPUT_DIR {self.folder} cannot be written: {error.strerror}"
        problem = broadcast(problem)
        if problem is not None:
            raise InputError(problem)

    def _wait_for(self, lock: FolderLock) -> str | None:
        """Wait for the folder; return what keeps it from being this run's."""
        until = time.monotonic() + _LOCK_SECONDS
        while not lock.claim():
            if time.monotonic() > until:
                return (
                    f"OUTPUT_DIR {self.folder} is in use by another run ({lock.holder}): wait for its end, or "
                    "choose another folder"
                )
            time.sleep(0.2)
        if lock.problem:
            logger.warning(
                "OUTPUT_DIR %s cannot be locked (%s): see to it that no other run uses it",
                self.folder,
                lock.problem,
            )
        return None

    def close(self) -> None:
        """Give the folder back."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _write_config(self) -> None:
        if is_main():
            try:
                cfg = self.cfg.clone()
                cfg.defrost()
                cfg.SEED = self.seed  # so that a run with a drawn seed can be resumed and repeated
                write_atomically(self.folder / CONFIG_FILE, cfg.dump())
                self.recipe.describe(self.folder)
            except OSError as error:
                raise InputError(f"OUTPUT_DIR {self.folder} cannot be written: {error.strerror}") from error

    def _record_evaluation(self, metrics: dict[str, float]) -> None:
        if is_main():
            record: dict[str, Any] = {"iteration": max(self.start_iteration - 1, 0)}
            if self.changed and self.eval_only:  # an evaluation beside that of the run
                record |= {"changed": self.changed, **_named("eval_only", metrics)}
            else:
                record |= _named("eval", metrics)
            write_evaluation(self.folder, record)
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
    if resume:
        stored = stored_config(cfg.OUTPUT_DIR).get("SEED")
        seed = stored if type(stored) is int and stored >= 0 else seed
    return broadcast(seed)


def check_new(folder: Path, go_on: bool) -> bool:
    """Tell whether a folder holds a run.

    Raises:
        InputError: it does and nothing is said of going on, or it has another's configuration.
    """
    has_run = any(folder.glob("model_*.pth"))
    if has_run and not go_on:
        raise InputError(
            f"OUTPUT_DIR {folder} already holds a run: go on with it by --resume, or choose another folder"
        )
    if not has_run and not is_of_a_run(folder):
        raise InputError(
            f"OUTPUT_DIR {folder} has a {CONFIG_FILE} that no run has written, and which the run's would replace; "
            "rename it, or choose another folder"
        )
    return has_run


def _check_writable(folder: Path) -> None:
    """Without leaving anything behind, as the rest of the configuration may yet be refused."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"OUTPUT_DIR {folder} cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"OUTPUT_DIR {folder} cannot be written: no permission for {existing}")
