"""The part of ``report.html`` that shows how a search went, out of its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from d2go_fbnetv5.reports.history import series
from d2go_fbnetv5.reports.html import figure_image, figures_table, section
from d2go_fbnetv5.reports.plots import curves_figure, losses_figure, probabilities_figure
from d2go_fbnetv5.reports.rank_agreement import SAMPLES_EQUAL, expected_equal
from d2go_fbnetv5.reports.results import SearchResults
from d2go_fbnetv5.utils.formatting import format_metric

# Keys of the history by task: heading, what the axis says, its note.
_CURVES = (
    ("entropy", "Entropy", "bits a block", "1 where all is open, 0 where all is decided."),
    (
        "ess",
        "Effective sample size",
        "effective samples",
        "Of all samples of a step, how many count for the task’s estimate.",
    ),
    ("expected_cost", "Expected cost", "relative cost", "Of the searchable blocks, by their probabilities."),
)


def diagnostics_sections(results: SearchResults, history: Sequence[dict[str, Any]]) -> list[str]:
    """Sections about the search over time; those without data are left out."""
    tasks = [task.task for task in results.tasks]
    return [
        part
        for part in (
            _probabilities(tasks, history),
            _losses(tasks, history),
            _diagnostics(tasks, history, results.cost_targets),
            _ranks(tasks, history),
        )
        if part
    ]


def _probabilities(tasks: Sequence[str], history: Sequence[dict[str, Any]]) -> str:
    present = [name for name in tasks if series(history, f"probs/{name}")[0]]
    if not present:
        return ""
    picture = figure_image(probabilities_figure(history, present), "Probability of each block over time")
    note = "A line is one block; above the dashed line at 0.5 it is kept."
    return section("Probabilities over time", picture, note)


def _losses(tasks: Sequence[str], history: Sequence[dict[str, Any]]) -> str:
    figure = losses_figure(history, tasks)
    if figure is None:
        return ""
    note = (
        "In colour the loss that trains the weights: that of the sampled topologies, each counted as often as the "
        "task’s own distribution would draw it (pale: as logged; dark: running mean). Dashed, in grey: the plain mean "
        "of the sampled topologies’ losses. Where the coloured line is below, the task’s distribution prefers "
        "topologies that are good for it."
    )
    return section(
        "Loss of the sampled topologies", figure_image(figure, "Loss of each task over time"), note
    )


def _diagnostics(
    tasks: Sequence[str], history: Sequence[dict[str, Any]], targets: Mapping[str, float]
) -> str:
    figures = [
        f"<div><h3>{title}</h3>{figure_image(figure, title, small=True)}<p class=note>{note}</p></div>"
        for prefix, title, label, note in _CURVES
        if (
            figure := curves_figure(
                history, tasks, prefix, label, targets.values() if prefix == "expected_cost" else ()
            )
        )
        is not None
    ]
    if not figures:
        return ""
    heads = ["task", "entropy", "effective samples", "expected cost", "cost target", "loss of samples"]
    rows = [
        [
            f"<b>{escape(task)}</b>",
            *(_start_and_end(history, f"{prefix}/{task}") for prefix, _, _, _ in _CURVES),
            format_metric(targets.get(task)),
            _start_and_end(history, f"task_loss/{task}"),
        ]
        for task in tasks
    ]
    note = "As first and as last logged; each is a mean over the steps since the line before."
    return section(
        "Diagnostics", f"<div class=curves>{''.join(figures)}</div>", figures_table(heads, rows), note
    )


def _start_and_end(history: Sequence[dict[str, Any]], key: str) -> str:
    _, values = series(history, key)
    if not values:
        return format_metric(None)
    return f"<small>{format_metric(values[0])} →</small> {format_metric(values[-1])}"


def _ranks(tasks: Sequence[str], history: Sequence[dict[str, Any]]) -> str:
    """Nothing for a search by one process."""
    spread = {task: series(history, f"rank_spread/{task}")[1] for task in tasks}
    present = [task for task in tasks if spread[task]]
    if not present:
        return ""
    equal = max(max(spread[task]) for task in present) == 0
    verdict = (
        "All processes held exactly the same probabilities whenever they were compared."
        if equal
        else "The processes’ probabilities differ. They should be equal, as gradients are averaged over processes."
    )
    heads = ["task", "largest difference of a probability between processes", "at the end"]
    rows = [
        [f"<b>{escape(task)}</b>", f"{max(spread[task]):.2g}", f"{spread[task][-1]:.2g}"] for task in present
    ]
    compared = [
        (line[SAMPLES_EQUAL], expected_equal([line[f"probs/{task}"] for task in present]))
        for line in history
        if SAMPLES_EQUAL in line and all(f"probs/{task}" in line for task in present)
    ]
    notes = [verdict]
    if compared:
        found, expected = (sum(values) / len(compared) for values in zip(*compared, strict=True))
        notes.append(
            f"Topologies that two processes sampled in the same step had {found:.3f} of their decisions in common on "
            f"average; with draws of their own it would be {expected:.3f}, with the same draws 1."
        )
    return section("Agreement between ranks", figures_table(heads, rows), *notes)
