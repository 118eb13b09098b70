"""Pictures of a search over time, and of what it found beside random topologies."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from d2go_fbnetv5.reports.drawing import LINE_COLOR, PATH_COLORS, TEXT_COLOR
from d2go_fbnetv5.reports.history import running_mean, series, thin
from d2go_fbnetv5.reports.results import SearchResults, TaskResult
from d2go_fbnetv5.utils.errors import InputError

TASK_COLORS = ("#3d7dca", "#d1603d", "#2f9e83", "#7a3f9d", "#b58900", "#59616d")
RANDOM_COLOR = "#9aa1ab"
_MOST_POINTS = 250
_SAME = 0.005  # metrics closer than this are drawn as equal, not blown up


def probabilities_figure(history: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Figure:
    """Draw the probability of every block over the iterations: a row for each task, a column for each path.

    Raises:
        ValueError: the history has no probabilities of a task.
    """
    curves = {task: series(history, f"probs/{task}") for task in tasks}
    missing = [task for task, (iterations, _) in curves.items() if not iterations]
    if missing or not curves:
        raise InputError(f"no probabilities over time of {', '.join(missing) or 'any task'} in the history")
    paths = max(len(probs[-1][0]) for _, probs in curves.values())
    stages = max(len(probs[-1]) for _, probs in curves.values())
    figure = blank_figure(2.3 * paths + 0.6, 1.75 * len(tasks) + 0.75)
    grid = figure.subplots(len(tasks), paths, sharex=True, sharey=True, squeeze=False)
    colors = [colormaps["viridis"](s / max(1, stages - 1) * 0.92) for s in range(stages)]
    for task, row in zip(tasks, grid, strict=True):
        iterations, probs = curves[task]
        kept = thin(len(iterations), _MOST_POINTS)
        for path, axes in enumerate(row):
            axes.axhline(0.5, color=LINE_COLOR, lw=0.7, ls=(0, (3, 3)))
            for stage in range(len(probs[-1])):
                values = [probs[i][stage][path] for i in kept]
                axes.plot([iterations[i] for i in kept], values, color=colors[stage], lw=1.2)
            axes.set_ylim(-0.02, 1.02)
            _style(axes)
        row[0].set_ylabel(plain_text(task), fontsize=9.5, weight="bold", color=TEXT_COLOR)
    for path, axes in enumerate(grid[0]):
        axes.set_title(f"Path {path}", fontsize=9.5, color=PATH_COLORS[min(path, len(PATH_COLORS) - 1)])
    for axes in grid[-1]:
        axes.set_xlabel("iteration", fontsize=8, color=LINE_COLOR)
    handles = [Line2D([], [], color=color, lw=2) for color in colors]
    labels = [f"Stage {stage}" for stage in range(1, stages + 1)]
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(stages, 9),
        fontsize=8,
        frameon=False,
        labelcolor=LINE_COLOR,
    )
    return figure


def losses_figure(history: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Figure | None:
    """Each task's loss: the logged values and their running mean, and dashed, where it was logged, the running mean
    over the sampled topologies as they are, without importance weights; None if no loss was logged."""
    curves = {task: series(history, f"loss_{task}") for task in tasks}
    curves = {task: curve for task, curve in curves.items() if curve[0]}
    if not curves:
        return None
    figure = blank_figure(9.6, 2.5)
    for index, (axes, (task, (iterations, values))) in enumerate(
        zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True)
    ):
        color = _task_color(tasks, task)
        sampled, plain = series(history, f"task_loss/{task}")
        kept, smooth = thin(len(sampled), 4 * _MOST_POINTS), running_mean(plain, max(1, len(plain) // 25))
        dashes = (0, (3, 2))
        axes.plot(
            [sampled[i] for i in kept], [smooth[i] for i in kept], color=RANDOM_COLOR, lw=1.2, ls=dashes
        )
        smooth = running_mean(values, max(1, len(values) // 25))
        kept = thin(len(iterations), 4 * _MOST_POINTS)
        axes.plot([iterations[i] for i in kept], [values[i] for i in kept], color=color, lw=0.8, alpha=0.35)
        axes.plot([iterations[i] for i in kept], [smooth[i] for i in kept], color=color, lw=1.6)
        axes.set_title(plain_text(task), fontsize=9.5, weight="bold", color=TEXT_COLOR)
        axes.set_xlabel("iteration", fontsize=8, color=LINE_COLOR)
        if index == 0:
            axes.set_ylabel("loss", fontsize=8, color=LINE_COLOR)
        _style(axes)
    return figure


def curves_figure(
    history: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    prefix: str,
    label: str,
    targets: Collection[float] = (),
) -> Figure | None:
    """``prefix/<task>`` of every task in one picture, with a dashed line at each target; None without values."""
    curves = {t: series(history, f"{prefix}/{t}") for t in tasks}
    if not any(iterations for iterations, _ in curves.values()):
        return None
    figure = blank_figure(3.6, 2.3)
    axes = figure.subplots()
    for i, target in enumerate(sorted(set(targets))):
        label_of_first = None if i else "target"
        axes.axhline(target, color=LINE_COLOR, lw=0.9, ls=(0, (3, 3)), label=label_of_first)
    for task, (iterations, values) in curves.items():
        kept = thin(len(iterations), _MOST_POINTS)
        smooth = running_mean(values, max(1, len(values) // 50))
        axes.plot(
            [iterations[i] for i in kept],
            [smooth[i] for i in kept],
            color=_task_color(tasks, task),
            lw=1.5,
            label=plain_text(task),
        )
    axes.set_xlabel("iteration", fontsize=8, color=LINE_COLOR)
    axes.set_ylabel(label, fontsize=8, color=LINE_COLOR)
    axes.legend(fontsize=8, frameon=False, labelcolor=LINE_COLOR)
    _style(axes)
    return figure


def comparison_figure(results: SearchResults) -> Figure | None:
    """Metric over FLOPs of each task's topology and of the random ones; None if no metric was measured."""
    tasks = [task for task in results.tasks if math.isfinite(task.metric)]
    if not tasks:
        return None
    figure = blank_figure(9.6, 2.7)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        _draw_comparison(axes, task)
    return figure


def _draw_comparison(axes: Axes, task: TaskResult) -> None:
    axes.scatter(
        [100 * flops / task.full_flops for flops in task.random_flops],
        task.random_metrics,
        s=26,
        color=RANDOM_COLOR,
        label="random",
        zorder=2,
    )
    if task.random_metrics:
        axes.axhline(task.random_mean, color=RANDOM_COLOR, lw=0.9, ls=(0, (3, 3)), zorder=1)
    axes.scatter(
        [100 * task.full_share_pruned],
        [task.metric],
        s=130,
        marker="*",
        color=PATH_COLORS[1],
        label="searched",
        zorder=3,
    )
    axes.set_title(plain_text(task.task), fontsize=9.5, weight="bold", color=TEXT_COLOR)
    axes.set_xlabel("pruned FLOPs, % of the full supernet", fontsize=8, color=LINE_COLOR)
    axes.set_ylabel(plain_text(task.metric_name), fontsize=8, color=LINE_COLOR)
    axes.margins(0.12)
    values = [task.metric, *task.random_metrics]
    if max(values) - min(values) < _SAME:
        axes.set_ylim(task.metric - _SAME, task.metric + _SAME)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=LINE_COLOR)
    _style(axes)


def blank_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, without axes."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=7.5, colors=LINE_COLOR, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3c8cf")
    axes.grid(color="#eceef1", lw=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=axes.get_xlabel() == "iteration"))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _task_color(tasks: Sequence[str], task: str) -> str:
    return TASK_COLORS[list(tasks).index(task) % len(TASK_COLORS)]


def plain_text(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
