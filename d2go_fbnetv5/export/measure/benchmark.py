"""Models x formats x sizes: latency, file size, memory and metric, measured side by side."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d2go_fbnetv5.export.formats.base import FORMATS, INT8, ExportSpec, get_format, list_formats, split_int8
from d2go_fbnetv5.export.measure.subjects import Subject, open_subject
from d2go_fbnetv5.utils.errors import InputError, sentence
from d2go_fbnetv5.utils.formatting import MISSING, format_count, format_metric

_REASON = 160  # characters of an exporter's complaint

# Of a trained model's file: its metrics. (model, format, path, description) -> {"top1": 0.9}
Evaluate = Callable[[str, str, Path, dict[str, Any]], dict[str, float]]


@dataclass
class Row:
    """One model in one format at one size.

    Attributes:
        flops: multiply-adds; None where they are not counted.
        file: the exported file; None where there is none.
        file_bytes: its size.
        one_thread, all_threads: (median, range between the quartiles) in milliseconds.
        memory_bytes: what loading and running it adds to a process at most.
        metrics: on a data set.
        reason: why it could not be exported; all else is None then.
    """

    model: str
    format: str
    size: tuple[int, int]
    flops: int | None = None
    file: str | None = None
    file_bytes: int | None = None
    one_thread: tuple[float, float] | None = None
    all_threads: tuple[float, float] | None = None
    memory_bytes: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    described: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ms_per_mflop(self) -> float | None:
        """On one thread."""
        return self.one_thread[0] / (self.flops / 1e6) if self.one_thread and self.flops else None

    def to_json(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if key != "described"}
        return {**content, "ms_per_mflop": self.ms_per_mflop}


def benchmark_formats() -> list[str]:
    """Return the names of all formats, those in 8 bits too, and of what runs without a file."""
    return sorted([*FORMATS.names(), *(f"{name}{INT8}" for name in list_formats("int8"))])


def run_benchmark(
    models: Sequence[str],
    formats: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    folder: Path,
    rounds: int = 30,
    threads: int | None = None,
    evaluate: Evaluate | None = None,
    progress: Callable[[str], Any] = lambda text: None,
    fixed_size: bool = False,
) -> list[Row]:
    """Exports each model in each format at each size and measures all of them in turns.

    Args:
        models: names for `open_subject`.
        formats: some of `benchmark_formats`.
        sizes: (height, width) of images; none for each model's usual one.
        folder: gets the files.
        rounds: of latency.
        threads: besides 1; all of the machine's by default.
        evaluate: a trained model's metrics; it may return {}.
        progress: is told what happens next.
        fixed_size: files of formats that can take the size that they are measured at alone.

    Raises:
        ValueError, FileNotFoundError: an unknown model or format, a size that a model of ours cannot take, or a
            format's package is missing.
    """
    subjects = [open_subject(name) for name in models]  # a run's IMPORTS may bring formats
    for format in formats:
        name, int8 = split_int8(format)
        get_format(name, int8=int8).require()
    for subject in subjects:
        for size in sizes:
            subject.module(size)  # which refuses what it cannot take, before anything is exported
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for subject in subjects:
        for size in sizes or [subject.size]:
            flops = subject.flops(size)
            for format in formats:
                progress(f"exporting {subject.name} as {format}")
                row = Row(subject.name, format, size, flops)
                _export(subject, row, folder, fixed_size)
                rows.append(row)
                if evaluate is not None and row.file is not None:
                    progress(f"evaluating {subject.name} as {format}")
                    row.metrics = evaluate(subject.name, format, Path(row.file), row.described)
    del subjects
    measured = [row for row in rows if row.reason is None]
    for attribute, count in (("one_thread", 1), ("all_threads", threads or os.cpu_count() or 1)):
        progress(f"measuring latency on {count} thread{'s' if count > 1 else ''}")
        answer = _work({"threads": count, "rounds": rounds}, measured)
        for row, latency in zip(measured, answer["latency"], strict=True):
            setattr(row, attribute, tuple(latency))
    for row in measured:
        progress(f"measuring the memory of {row.model} as {row.format}")
        row.memory_bytes = _work({"threads": 1}, [row])["memory"]
    return rows


def _export(subject: Subject, row: Row, folder: Path, fixed_size: bool) -> None:
    """Writes the file; where the exporter cannot, the row says why."""
    module = subject.module(row.size)
    plain, int8 = split_int8(row.format)
    kind = get_format(plain)
    if not kind.suffix:
        return
    calibration = subject.calibration(row.size) if int8 else None
    name = f"{subject.name.strip('/').replace('/', '_')}-{row.format}-{row.size[0]}x{row.size[1]}"
    path = folder / f"{name}{kind.suffix}"
    logging.disable(logging.CRITICAL)  # torch prints the whole graph that it could not export
    try:
        fixed = fixed_size and kind.fixed_size
        spec = ExportSpec(row.size, subject.least, subject.outputs, calibration, fixed)
        row.described = kind.export(module, path, spec)
    except Exception as error:  # exporters raise errors of any class for what they do not support
        text = sentence(error)
        row.reason = f"{type(error).__name__}: {text[:_REASON]}{'...' if len(text) > _REASON else ''}"
        path.unlink(missing_ok=True)
        return
    finally:
        logging.disable(logging.NOTSET)
    row.file, row.file_bytes = str(path), path.stat().st_size


def _work(task: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the worker process answers.

    Raises:
        ValueError: it failed; the message is the last line of what it said.
    """
    if not rows:
        return {"latency": []}
    # Where the formats are from: a user's are imported from where this process has them.
    task["modules"] = sorted({type(get_format(split_int8(row.format)[0])).__module__ for row in rows})
    task["path"] = sys.path
    task["candidates"] = [
        {
            "model": row.model,
            "format": row.format,
            "size": row.size,
            "path": row.file,
            "described": row.described,
        }
        for row in rows
    ]
    done = subprocess.run(
        [sys.executable, "-m", "d2go_fbnetv5.export.measure.worker"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        names = ", ".join(dict.fromkeys(f"{row.model} ({row.format})" for row in rows))
        raise InputError(f"measuring {names} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


_COLUMNS = (
    "model",
    "format",
    "size",
    "FLOPs",
    "ms, 1 thread",
    "ms, {threads} threads",
    "ms per MFLOP",
    "file MB",
    "memory MB",
    "metric",
)


def markdown(rows: Sequence[Row], threads: int, about: str) -> str:
    """A table of all rows; below it the reasons of those that could not be exported.

    Args:
        threads: of the second latency.
        about: the machine and the versions.
    """
    columns = [column.format(threads=threads) for column in _COLUMNS]
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * 3}{'---:|' * (len(columns) - 4)}---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lines += [
        "",
        f"{about}. Milliseconds: median and, in brackets, the range between the quartiles; on one thread that thread's "
        "processor time. Memory: what loading and running adds to a process at most.",
    ]
    failed = [row for row in rows if row.reason is not None]
    if failed:
        lines += ["", "Not exported:", ""]
        lines += [f"- {row.model} as {row.format}: {row.reason}" for row in failed]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    rate = row.ms_per_mflop
    metrics = ", ".join(f"{name} {format_metric(value)}" for name, value in row.metrics.items())
    return [
        row.model,
        row.format,
        f"{row.size[0]}x{row.size[1]}",
        format_count(row.flops),
        _latency(row.one_thread),
        _latency(row.all_threads),
        MISSING if rate is None else f"{rate:.4f}",
        _megabytes(row.file_bytes),
        _megabytes(row.memory_bytes),
        metrics or MISSING,
    ]


def _latency(latency: tuple[float, float] | None) -> str:
    return MISSING if latency is None else f"{latency[0]:.2f} ({latency[1]:.2f})"


def _megabytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.1f}"
