"""What the benchmarks of the search share: arguments, tables, JSON, timing in turns, and runs that are not repeated."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare
from d2go_fbnetv5.utils.files import write_atomically

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def parser(doc: str, output: str) -> argparse.ArgumentParser:
    """With --quick, --threads and --output, which every benchmark has."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--quick", action="store_true", help="a few minutes at most: shows that it runs, no more"
    )
    result.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    result.add_argument("--output", type=Path, default=Path(output), help=f"JSON file (default {output})")
    return result


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table of the rows' values under ``columns``; what a row lacks is left empty."""
    cells = [list(columns), ["---"] * len(columns)]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(
    path: Path, tables: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[str]]], **more: Any
) -> None:
    """Print each table (its rows, its columns) under its title and write rows and ``more`` to a JSON file."""
    content = {"machine": machine(), **more, **{title: list(rows) for title, (rows, _) in tables.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    for title, (rows, columns) in tables.items():
        print(f"\n### {title}\n\n{markdown(rows, columns)}")
    print(f"\n{path}")


def take_turns(steps: Mapping[Any, Callable[[], None]], rounds: int) -> dict[Any, list[float]]:
    """CPU seconds of this process for each of the steps in each of the rounds.

    They take turns, in an order that rotates, so that a busy or throttled machine is no one's disadvantage; time
    that other processes take does not count.
    """
    found: dict[Any, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            before = time.process_time()
            steps[name]()
            found[name].append(time.process_time() - before)
    return found


def by_seed(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """A figure by each "seed" of the rows, in their order: the mean over its rows."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return {seed: statistics.fmean(row[key] for row in rows if row["seed"] == seed) for seed in seeds}


def mean_and_spread(figures: Iterable[float]) -> str:
    """Mean and sample standard deviation over seeds."""
    values = list(figures)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


def build_run(config: str, folder: Path, opts: Sequence[Any]) -> Run:
    """A run of a recipe, restored to its newest checkpoint if there is one.

    Args:
        config: under configs/.
        opts: KEY VALUE pairs over it.
    """
    cfg = load_cfg(CONFIGS / config, [str(opt) for opt in (*opts, "OUTPUT_DIR", folder)])
    return Run(prepare(cfg, 1, resume=True), resume=True)


def run_folder(args: argparse.Namespace, name: str, options: Sequence[str]) -> Path:
    """Where a benchmark keeps finished runs: --folder, by default output/benchmarks/NAME or, if --quick, NAME-quick.

    Args:
        options: those that what lies there depends on.

    Raises:
        ValueError: it was made with others.
    """
    folder = args.folder or Path("output/benchmarks") / (f"{name}-quick" if args.quick else name)
    file, asked = folder / "options.json", {option: str(getattr(args, option)) for option in options}
    if file.is_file():
        for option, value in json.loads(file.read_text()).items():
            if asked.get(option) != value:
                raise ValueError(
                    f"{folder} holds results of --{option} {value}, asked is {asked.get(option)}: choose another "
                    "--folder"
                )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asked))
    return folder


def finished(config: str, folder: Path, opts: Sequence[Any]) -> dict[str, Any]:
    """Do a run unless it has been done, and say what came of it.

    Returns:
        ``metrics`` by name, and ``cpu``: seconds of processor time of all its training steps.
    """
    file = folder / "finished.json"
    if not file.is_file():
        run = build_run(config, folder, opts)
        steps, before = run.cfg.SOLVER.MAX_ITER - run.start_iteration, time.process_time()
        run.train()
        # Of a run that was interrupted, the steps since stand for all.
        cpu = (
            (time.process_time() - before) * run.cfg.SOLVER.MAX_ITER / steps
            if steps
            else run.stopwatch.seconds
        )
        metrics = run.conclude()
        for checkpoint in folder.glob("model_0*.pth"):
            checkpoint.unlink()
        write_atomically(file, json.dumps({"metrics": metrics, "cpu": cpu}))
    return json.loads(file.read_text())
