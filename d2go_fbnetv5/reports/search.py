"""Writes what a search leaves in its output folder, and the table it prints at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.reports.drawing import Panel, draw_figure, save_figure
from d2go_fbnetv5.reports.history import series
from d2go_fbnetv5.reports.plots import probabilities_figure
from d2go_fbnetv5.reports.results import SearchResults, TaskResult
from d2go_fbnetv5.reports.search_page import render_report
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import format_count, format_metric, format_plural, format_share


def write_search_report(
    output_dir: str | os.PathLike[str], results: SearchResults, history: Sequence[dict[str, Any]]
) -> None:
    """Write topologies.json, topologies.svg and .png, probabilities.png and report.html.

    Args:
        output_dir: an existing folder; its ``config.yaml``, if there is one, becomes part of report.html.
        history: the lines of ``metrics.json``; without probabilities there is no probabilities.png.

    Raises:
        OSError: a file cannot be written. Each file appears whole or not at all.
    """
    folder = Path(output_dir)
    entries = {task.task: _entry(task) for task in results.tasks}
    save_topologies(folder / "topologies.json", results.family, results.num_stages, results.size, entries)
    topologies = draw_figure([_panel(task) for task in results.tasks])
    save_figure(topologies, folder / "topologies.svg")
    save_figure(topologies, folder / "topologies.png")
    tasks = [task.task for task in results.tasks if series(history, f"probs/{task.task}")[0]]
    if tasks:
        save_figure(probabilities_figure(history, tasks), folder / "probabilities.png")
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    page = render_report(results, history, topologies, text)
    write_atomically(folder / "report.html", page)


def search_table(results: SearchResults) -> Table:
    """One row a task: what was found, what it costs, and its metric beside the random topologies'.

    The metric is green where it is at least the random mean, red where it is not.
    """
    random = max((len(task.random_metrics) for task in results.tasks), default=0)
    rivals = format_plural(random, "topology", "topologies")
    table = Table(
        title=Text(f"Searched topologies of family {results.family} at {results.size[0]}x{results.size[1]}"),
        box=SIMPLE_HEAD,
        caption=f"In brackets: pruned for the task's head. Random: {rivals} that cost as much or more, "
        "pruned; all on validation data with the same supernet weights. "
        + results.shared
        + results.undecided,
        caption_justify="left",
    )
    table.add_column("task", style="bold")
    for name in ("blocks\nkept", "FLOPs", "of full\nsupernet", "metric", "random\nmean", "random\nbest"):
        table.add_column(name, justify="right")
    for task in results.tasks:
        blocks = task.topology.num_stages * task.topology.num_paths
        style = "green" if task.at_least_as_good_as(task.random_mean) else "red"
        table.add_row(
            Text(task.task),
            f"{task.topology.num_kept}/{blocks} ({task.pruned.num_kept})",
            f"{format_count(task.flops)} ({format_count(task.flops_pruned)})",
            format_share(task.full_share),
            Text.assemble(f"{task.metric_name} ", (format_metric(task.metric), style)),
            format_metric(task.random_mean),
            format_metric(task.random_best),
        )
    return table


def _panel(task: TaskResult) -> Panel:
    blocks = task.topology.num_stages * task.topology.num_paths
    kept, used = task.topology.num_kept, task.pruned.num_kept
    note = (
        f"{kept} of {blocks} blocks kept, {used} used by the head · {format_count(task.flops_pruned)} FLOPs"
    )
    return Panel(task.task, task.topology, task.outputs, note)


def _entry(task: TaskResult) -> dict[str, Any]:
    return {
        "topology": task.topology,
        "probabilities": task.probabilities,
        "outputs": task.outputs,
        "flops": task.flops,
        "flops_pruned": task.flops_pruned,
        "relative_cost": task.relative_cost,
        "relative_cost_pruned": task.relative_cost_pruned,
        "blocks_kept": task.topology.num_kept,
        "blocks_kept_pruned": task.pruned.num_kept,
        **({"group": task.group} if task.group else {}),
        "metrics": task.metrics,
        "random": {
            "metric": task.metric_name,
            "higher_is_better": task.higher_is_better,
            "topologies": task.random_topologies,
            "metrics": task.random_metrics,
            "flops": task.random_flops,
        },
    }
