"""Hooks that tell how a run goes: metrics.json, TensorBoard, and the console."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.reports.history import History
from d2go_fbnetv5.utils.files import AppendedFile
from d2go_fbnetv5.utils.ranks import gather, is_main, mean_over_ranks, rank, unwrap, world_size

Records = Callable[[], Mapping[str, Any]]


class Writer(Protocol):
    """Takes records: floats, or nested lists of floats, by name, and "iteration"."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


_TIMES = ("time", "data_time")  # of the machine, not of the run


class StepMeans:
    """Means of what each step gives, over the steps since they were last taken.

    It goes into checkpoints, so that a resumed run's next record is of the same steps; but for the times.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return this process' means by name, and begin anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts of each process. Every process must call it."""
        sums = {name: total.cpu() for name, total in self._sums.items() if name not in _TIMES}
        return {"ranks": gather({name: (total, self._counts[name]) for name, total in sums.items()})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over this process' part; where there were other processes than now, begin anew."""
        own = state["ranks"][rank()] if len(state["ranks"]) == world_size() else {}
        self._sums = {name: total for name, (total, _) in own.items()}
        self._counts = {name: count for name, (_, count) in own.items()}


class RecordHook(Hook):
    """Makes a record of every `period`-th and of the last step: means over the steps since the record before.

    Only then are losses read from the device and averaged over the processes.

    Args:
        writers: used by process 0 alone.
        extra: further entries, such as the architecture probabilities; called by every process.
        means: since the last record; perhaps restored from a checkpoint.
    """

    def __init__(
        self, writers: list[Writer], period: int, extra: Records = dict, means: StepMeans | None = None
    ) -> None:
        self.writers = writers if is_main() else []
        self.period, self.extra = period, extra
        self.means = means or StepMeans()

    def after_step(self, loop: TrainLoop) -> None:
        self.means.add(loop.losses)
        self.means.add(_scalars(getattr(unwrap(loop.model), "diagnostics", {})))
        self.means.add(dict(zip(_TIMES, map(torch.tensor, (loop.step_time, loop.data_time)), strict=True)))
        done = loop.iteration + 1
        if done % self.period and done != loop.max_iter:
            return
        record = {
            "iteration": loop.iteration,
            **mean_over_ranks(self.means.take()),
            **_rates(loop.optimizer),
            **self.extra(),
        }
        for writer in self.writers:
            writer.write(record)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def _scalars(diagnostics: Mapping[str, Any]) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in diagnostics.items() if isinstance(v, Tensor) and v.dim() == 0}


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The first group's rate as "lr", and that of each named group with another one ("arch_lr")."""
    first, *others = optimizer.param_groups
    rates = {"lr": float(first["lr"])}
    return rates | {
        f"{g['name']}_lr": float(g["lr"]) for g in others if "name" in g and g["lr"] != first["lr"]
    }


class HistoryWriter:
    """metrics.json."""

    def __init__(self, history: History) -> None:
        self._history = history

    def write(self, record: Mapping[str, Any]) -> None:
        self._history.write(record)

    def close(self) -> None:
        self._history.close()


class TensorBoardWriter:
    """TensorBoard events in the output folder; nested lists become histograms.

    TensorBoard's own writer has a thread, whose errors, such as of a full disk, would come too late and as a traceback.

    Args:
        folder: OUTPUT_DIR.
        start_iteration: what earlier files have of this iteration and later ones is not shown.
    """

    def __init__(self, folder: str | Path, start_iteration: int = 0) -> None:
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{platform.node()}.{os.getpid()}"
        self._file = AppendedFile(Path(folder, name), new=True)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if start_iteration:
            self._write(step=start_iteration, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, (list, tuple)):
                values = torch.tensor(value).flatten()
                values = values[values.isfinite()]
                if len(values):
                    self._write(
                        step=record["iteration"], summary=summary.histogram(name, values.numpy(), bins=30)
                    )
            elif name != "iteration" and isinstance(value, (int, float)):
                self._write(step=record["iteration"], summary=summary.scalar(name, value))

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


class ConsoleWriter(Hook):
    """A line per record with the losses and the time left, and on a terminal a progress bar below."""

    def __init__(self, console: Console, start_iteration: int, max_iter: int) -> None:
        self._console, self._max_iter = console, max_iter
        self._start, self._since = start_iteration, time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._bar = self._progress.add_task("", total=max_iter, completed=start_iteration)

    def before_train(self, loop: TrainLoop) -> None:
        self._since = time.monotonic()
        if self._progress is not None:
            self._progress.start()

    def after_step(self, loop: TrainLoop) -> None:
        if self._progress is not None:
            self._progress.update(self._bar, completed=loop.iteration + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        if "time" not in record:
            return  # an evaluation, which prints its own table
        done = record["iteration"] + 1
        left = (time.monotonic() - self._since) / (done - self._start) * (self._max_iter - done)
        # Surrogate losses of the search have a meaningful gradient, not a meaningful value.
        losses = [
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in record.items()
            if name.startswith("loss") and not name.startswith("loss_arch")
        ]
        parts = [
            f"iter {done:>{len(str(self._max_iter))}}/{self._max_iter}",
            *losses,
            f"lr {record['lr']:.3g}",
            f"{record['time']:.3f} s/iter (data {record['data_time']:.3f})",
            f"left {_duration(left)}",
        ]
        self._console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
