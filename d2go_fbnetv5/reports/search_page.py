"""``report.html``: a search on one page that needs no server, no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from d2go_fbnetv5.reports.html import figure_image, figures_table, page, section
from d2go_fbnetv5.reports.plots import comparison_figure
from d2go_fbnetv5.reports.results import SearchResults, TaskResult
from d2go_fbnetv5.reports.search_curves import diagnostics_sections
from d2go_fbnetv5.utils.formatting import (
    format_count,
    format_duration,
    format_metric,
    format_plural,
    format_share,
)


def render_report(
    results: SearchResults, history: Sequence[dict[str, Any]], topologies: Figure, config: str = ""
) -> str:
    """Return the page as text.

    Args:
        history: the lines of ``metrics.json``; parts without data are left out.
        topologies: the picture of the found topologies.
        config: the run's configuration file, shown folded.
    """
    sections = [
        section("Result", _table(results), _table_note(results)),
        section(
            "Topologies", figure_image(topologies, "The searched topology of each task"), _TOPOLOGIES_NOTE
        ),
        section("Beside random topologies", *_comparison(results)),
        section("Final distribution", _heat_maps(results), _HEAT_NOTE),
        *diagnostics_sections(results, history),
    ]
    if config:
        folded = f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
        sections.append(section("Configuration", folded))
    return page(f"FBNetV5 search: {_task_names(results)}", _header(results), sections)


_COSTS = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}
_TOPOLOGIES_NOTE = (
    "Columns are stages, rows are paths: Path 0 has the highest resolution. Grey blocks are kept, but no feature "
    "that the head reads depends on them; they are pruned where the network is built."
)
_HEAT_NOTE = "The probability of keeping each block at the end. Blocks above 0.5, framed, are kept."


def _header(results: SearchResults) -> str:
    height, width = results.size
    facts = {
        "family": results.family,
        "searchable stages": str(results.num_stages),
        "costs counted at": f"{height} × {width}",
        "iterations": f"{results.iterations:,}",
        "time": format_duration(results.seconds),
        "evaluation images": f"{results.eval_images:,}",
        "precise BN images": f"{results.precise_bn_images:,}",
    }
    targets = results.cost_targets
    if len(set(targets.values())) == 1:
        facts["cost target"] = f"{format_share(*set(targets.values()))} of {_COSTS[results.cost_metric]}"
    elif targets:
        each = ", ".join(f"{name} {format_share(target)}" for name, target in targets.items())
        facts["cost targets"] = f"{each} of {_COSTS[results.cost_metric]}"
    if results.earlier:
        facts["found before"] = ", ".join(results.earlier)
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    count = len(results.tasks)
    networks = "a network topology for one task" if count == 1 else f"network topologies for {count} tasks"
    return (
        f"<header><p class=kicker>FBNetV5 search</p><h1>One run, {networks}</h1>"
        f"<p class=lead>{_verdict(results)}</p><dl class=facts>{items}</dl></header>"
    )


def _verdict(results: SearchResults) -> str:
    measured = [task for task in results.tasks if task.random_metrics]
    if not measured:
        return f"Searched: {escape(_task_names(results))}."
    good = [task.task for task in measured if task.at_least_as_good_as(task.random_mean)]
    if len(good) == len(measured):
        who = "Every searched topology is" if len(measured) > 1 else "The searched topology is"
        return f"{who} at least as good as the mean of random topologies that cost the same or more."
    if not good:
        return "No searched topology reaches the mean of random topologies that cost the same or more."
    names = escape(", ".join(good))
    return f"At least as good as the mean of random topologies that cost the same or more: {names}."


def _table(results: SearchResults) -> str:
    heads = ("task", "blocks kept", "FLOPs", "of full supernet", "metric", "random mean", "random best")
    rows = []
    for task in results.tasks:
        blocks = task.topology.num_stages * task.topology.num_paths
        mark = "good" if task.at_least_as_good_as(task.random_mean) else "bad" if task.random_metrics else ""
        cells = (
            f"<b>{escape(task.task)}</b>",
            f"{task.topology.num_kept} / {blocks} <small>({task.pruned.num_kept})</small>",
            f"{format_count(task.flops)} <small>({format_count(task.flops_pruned)})</small>",
            f'<span class=bar style="--share:{task.full_share:.4f}"></span>{format_share(task.full_share)}',
            f'<span class="metric {mark}">{format_metric(task.metric)}</span> '
            f"<small>{escape(task.metric_name)}</small>",
            format_metric(task.random_mean),
            format_metric(task.random_best),
        )
        rows.append(cells)
    return figures_table(heads, rows)


def _table_note(results: SearchResults) -> str:
    count = max((len(task.random_metrics) for task in results.tasks), default=0)
    rivals = format_plural(count, "topology", "topologies")
    return (
        "In brackets: pruned for the task’s head. FLOPs are multiply-adds of the backbone with Stage 0, without a "
        f"head. Random: {rivals} that cost as much or more, pruned. All metrics are on validation data, with "
        "the same supernet weights and batch-norm statistics re-estimated for each topology. "
        + escape(results.shared + results.undecided)
    )


def _comparison(results: SearchResults) -> list[str]:
    figure = comparison_figure(results)
    if figure is None:
        return []
    others = "".join(
        f"<tr><td><b>{escape(task.task)}</b></td><td>"
        + ", ".join(f"{escape(name)} {format_metric(value)}" for name, value in task.metrics.items())
        + "</td></tr>"
        for task in results.tasks
    )
    folded = f"<details><summary>All metrics</summary><table class=metrics>{others}</table></details>"
    note = "The star is the searched topology; the dashed line is the mean of the random ones."
    return [figure_image(figure, "Metric over FLOPs of the searched and the random topologies"), note, folded]


def _heat_maps(results: SearchResults) -> str:
    return f"<div class=heats>{''.join(_heat_map(task) for task in results.tasks)}</div>"


def _heat_map(task: TaskResult) -> str:
    stages, paths = task.topology.num_stages, task.topology.num_paths
    head = "".join(f"<th>{stage}</th>" for stage in range(1, stages + 1))
    rows = []
    for path in range(paths):
        cells = "".join(
            f'<td class="{"kept" if task.topology.keeps(stage, path) else "skipped"}" '
            f'style="--p:{task.probabilities[stage - 1][path]:.3f}">{task.probabilities[stage - 1][path]:.2f}</td>'
            for stage in range(1, stages + 1)
        )
        mark = " ◂" if f"path{path}" in task.outputs else ""
        rows.append(f"<tr><th>Path {path}{mark}</th>{cells}</tr>")
    return (
        f"<table class=heat><caption>{escape(task.task)}</caption>"
        f"<thead><tr><th>Stage</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _task_names(results: SearchResults) -> str:
    return ", ".join(task.task for task in results.tasks)
