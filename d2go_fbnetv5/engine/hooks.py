"""Hooks of the training loop that change or keep the model: schedule, projection, checkpoints, evaluation."""

import time
from collections.abc import Callable
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler

from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.utils.ranks import unwrap


class ScheduleHook(Hook):
    """Sets each group's learning rate to its base rate times `schedule(iteration / max_iter)`.

    Args:
        base_lrs: the base rate of each of the optimizer's groups.
    """

    def __init__(self, schedule: ParamScheduler, base_lrs: list[float]) -> None:
        self.schedule, self.base_lrs = schedule, base_lrs

    def before_step(self, loop: TrainLoop) -> None:
        multiplier = self.schedule(loop.iteration / loop.max_iter)
        for group, base in zip(loop.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * multiplier


class AfterStepHook(Hook):
    """Calls the model's own `after_step()`, such as a projection onto what its weights may be."""

    def after_step(self, loop: TrainLoop) -> None:
        model: Any = unwrap(loop.model)
        model.after_step()


class Stopwatch(Hook):
    """Seconds of training, over all the parts of an interrupted run. Goes into checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def before_train(self, loop: TrainLoop) -> None:
        self.start()

    def start(self) -> None:
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._read()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = float(state["seconds"])

    def close(self) -> None:
        self.seconds, self._since = self._read(), None

    def _read(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)


class CheckpointHook(Hook):
    """Writes a checkpoint every `period` steps and after the last."""

    def __init__(self, checkpointer: RunCheckpointer, period: int) -> None:
        self.checkpointer, self.period = checkpointer, period

    def after_step(self, loop: TrainLoop) -> None:
        done = loop.iteration + 1
        if done % self.period == 0 or done == loop.max_iter:
            loop.guard.check()
            self.checkpointer.save_iteration(loop.iteration, final=done == loop.max_iter)


class EvalHook(Hook):
    """Calls `evaluate(iteration)` every `period` steps, but for the last, which the end of a run evaluates."""

    def __init__(self, period: int, evaluate: Callable[[int], None]) -> None:
        self.period, self.evaluate = period, evaluate

    def after_step(self, loop: TrainLoop) -> None:
        done = loop.iteration + 1
        if self.period > 0 and done % self.period == 0 and done < loop.max_iter:
            self.evaluate(loop.iteration)
            loop.model.train()
