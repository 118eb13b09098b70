"""``report.html``: a search on one page that needs no server, no network and no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from d2go_fbnetv5.engine.formatting import (
    format_count,
    format_duration,
    format_metric,
    format_plural,
    format_share,
)
from d2go_fbnetv5.engine.plots import comparison_figure, curves_figure, losses_figure, probabilities_figure
from d2go_fbnetv5.engine.report_style import STYLE
from d2go_fbnetv5.engine.results import SearchResults, TaskResult
from d2go_fbnetv5.engine.series import series
from d2go_fbnetv5.version import __version__


def render_report(
    results: SearchResults, history: Sequence[dict[str, Any]], topologies: Figure, config: str = ""
) -> str:
    """The page as text.

    Args:
        history: the lines of ``metrics.json``; parts without data are left out.
        topologies: the picture of the found topologies.
        config: the run's configuration file, shown folded.
    """
    sections = [
        _section("Result", _table(results), _table_note(results)),
        _section("Topologies", _figure(topologies, "The searched topology of each task"), _TOPOLOGIES_NOTE),
        _section("Beside random topologies", *_comparison(results)),
        _section("Final distribution", _heat_maps(results), _HEAT_NOTE),
        *_over_time(results, history),
    ]
    if config:
        folded = f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
        sections.append(_section("Configuration", folded))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>FBNetV5 search: {escape(_task_names(results))}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_header(results)}\n{''.join(sections)}"
        f"<footer>d2go_fbnetv5 {escape(__version__)}</footer>\n</main>\n</body>\n</html>\n"
    )


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
    if results.cost_target is not None:
        facts["cost target"] = f"{format_share(results.cost_target)} of {_COSTS[results.cost_metric]}"
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
        rows.append(
            "<tr>"
            + "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads, cells, strict=True))
            + "</tr>"
        )
    head = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table class=results><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _table_note(results: SearchResults) -> str:
    count = max((len(task.random_metrics) for task in results.tasks), default=0)
    rivals = format_plural(count, "topology", "topologies")
    return (
        "In brackets: pruned for the task’s head. FLOPs are multiply-adds of the backbone with Stage 0, without a "
        f"head. Random: {rivals} that cost as much or more, pruned. All metrics are on validation data, with "
        "the same supernet weights and batch-norm statistics re-estimated for each topology."
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
    return [_figure(figure, "Metric over FLOPs of the searched and the random topologies"), note, folded]


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


def _over_time(results: SearchResults, history: Sequence[dict[str, Any]]) -> list[str]:
    names = [task.task for task in results.tasks]
    sections = []
    with_probs = [name for name in names if series(history, f"probs/{name}")[0]]
    if with_probs:
        picture = _figure(probabilities_figure(history, with_probs), "Probability of each block over time")
        note = "A line is one block; above the dashed line at 0.5 it is kept."
        sections.append(_section("Probabilities over time", picture, note))
    losses = losses_figure(history, names)
    if losses is not None:
        note = "Pale: as logged; dark: running mean. A loss is its task’s alone, importance weight included."
        sections.append(_section("Losses", _figure(losses, "Loss of each task over time"), note))
    curves = (
        ("entropy", "bits a block", "Entropy", None),
        ("ess", "effective samples", "Effective sample size", None),
        (
            "expected_cost",
            "relative cost",
            "Expected relative cost",
            results.cost_target,
        ),
    )
    figures = [
        f"<div><h3>{title}</h3>{_figure(figure, title, small=True)}</div>"
        for prefix, label, title, target in curves
        if (figure := curves_figure(history, names, prefix, label, target)) is not None
    ]
    if figures:
        sections.append(_section("Diagnostics", f"<div class=curves>{''.join(figures)}</div>"))
    return sections


def _section(title: str, *parts: str) -> str:
    """A titled part of the page; a part that is not markup is a note."""
    if not parts:
        return ""
    body = "\n".join(part if part.startswith("<") else f"<p class=note>{part}</p>" for part in parts)
    return f"<section><h2>{title}</h2>\n{body}\n</section>\n"


def _figure(figure: Figure, description: str, small: bool = False) -> str:
    """The figure as an image within the page; an SVG of its own, so that nothing of it leaks into the page."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "d2go_fbnetv5", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = "figure small" if small else "figure"
    width = 100 * figure.get_figwidth()  # pixels beyond which its text would outgrow the page's
    image = f'<img alt="{escape(description)}" style="max-width: {width:.0f}px" src="data:image/svg+xml;base64,{data}">'
    return f'<div class="{kind}">{image}</div>'


def _task_names(results: SearchResults) -> str:
    return ", ".join(task.task for task in results.tasks)
