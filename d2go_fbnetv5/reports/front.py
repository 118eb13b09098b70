"""Writes ``front.json``, its picture and its page: what a task's networks cost, and what they are worth."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.reports.drawing import LINE_COLOR, PATH_COLORS, TEXT_COLOR, save_figure
from d2go_fbnetv5.reports.html import figures_table, page, section
from d2go_fbnetv5.reports.plots import RANDOM_COLOR, TASK_COLORS, blank_figure, plain_text
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import format_count, format_metric

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 320, 84, 32  # of the page's curves, in pixels
_OWN = ("outputs", "metric", "higher_is_better", "evaluations")  # a task's keys that are no lists of points

Point = Mapping[str, Any]


def write_front_report(folder: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write front.json, front.svg, front.png and front.html; front.json last, so that it says that all is there.

    Args:
        content: of front.json.
    """
    folder = Path(folder)
    figure = front_figure(content)
    for suffix in (".svg", ".png"):
        save_figure(figure, folder / f"front{suffix}")
    write_atomically(folder / "front.html", front_page(content))
    write_atomically(folder / "front.json", json.dumps(content, indent=1) + "\n")


def front_figure(content: Mapping[str, Any]) -> Figure:
    """Draw loss over the first cost: each task's front, and the other topologies beside it."""
    tasks, cost = content["tasks"], content["costs"][0]
    figure = blank_figure(3.4 * len(tasks), 2.9)
    for i, (axes, (name, task)) in enumerate(
        zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True)
    ):
        color = TASK_COLORS[i % len(TASK_COLORS)]
        for kind, points in _kinds(task).items():
            x, y = [p["costs"][cost] for p in points], [p["loss"] for p in points]
            if kind == "front":
                axes.step(x, y, where="post", color=color, lw=1.4)
                axes.plot(x, y, "o", color=color, ms=4, label=kind)
            elif kind == "random":
                axes.plot(x, y, ".", color=RANDOM_COLOR, label=kind)
            else:
                axes.plot(x, y, "*" if kind == "mode" else "^", ms=7, label=kind)
        axes.set_title(plain_text(name), fontsize=9.5, weight="bold", color=TEXT_COLOR)
        axes.set_xlabel(plain_text(_cost_name(cost)), fontsize=8, color=LINE_COLOR)
        axes.set_ylabel("validation loss", fontsize=8, color=LINE_COLOR)
        axes.tick_params(labelsize=7.5)
        axes.legend(fontsize=7, frameon=False)
    return figure


def front_page(content: Mapping[str, Any]) -> str:
    """Render the page: a file of its own, without a script. Points say what they are, and lead to their row."""
    tasks = content["tasks"]
    height, width = content["size"]
    facts = {
        "family": content["family"],
        "searchable stages": content["num_stages"],
        "costs counted at": f"{height} × {width}",
        "validation images": f"{content['images']:,}",
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    header = (
        "<header><p class=kicker>FBNetV5 front</p><h1>What each task's networks cost, and what they are worth</h1>"
        "<p class=lead>Networks that no other one beats in both loss and cost, with the weights of one supernet and "
        f"batch-norm statistics of their own.</p><dl class=facts>{items}</dl></header>"
    )
    sections = [
        section(
            escape(name),
            _curve(name, task, content["costs"][0]),
            _table(name, task, content["costs"]),
            f"On the line: {len(task['front'])} of {task['evaluations']} networks that were judged. Grey: random "
            "topologies; red: what the search found (mode) and those made by hand. Costs are those of the backbone as "
            "built for this head, Stage 0 included, without the head. Path 0 is the top row of a picture, Stage 1 its "
            "first column.",
        )
        for name, task in tasks.items()
    ]
    return page("FBNetV5 front", header, sections)


def _kinds(task: Mapping[str, Any]) -> dict[str, Sequence[Point]]:
    return {kind: points for kind, points in task.items() if kind not in _OWN}


def _cost_name(cost: str) -> str:
    return {"flops": "FLOPs", "params": "parameters"}.get(cost, f"ms ({Path(cost).name})")


def _cost_text(cost: str, value: float) -> str:
    return format_count(value) if cost in ("flops", "params") else f"{value:.3g} ms"


def _describe(kind: str, point: Point, task: Mapping[str, Any]) -> str:
    costs = ", ".join(
        f"{_cost_text(cost, value)} {_cost_name(cost)}" for cost, value in point["costs"].items()
    )
    metric = f"{task['metric']} {format_metric(point['metrics'][task['metric']])}"
    return f"{kind}: {metric}, loss {point['loss']:.4f}, {costs}"


def _curve(name: str, task: Mapping[str, Any], cost: str) -> str:
    """An SVG whose points have titles, for a pointer, and lead to the table's rows, for a finger."""
    points = [(kind, i, point) for kind, some in _kinds(task).items() for i, point in enumerate(some)]
    xs, ys = [p["costs"][cost] for *_, p in points], [p["loss"] for *_, p in points]

    def place(point: Point) -> tuple[float, float]:
        x = (point["costs"][cost] - min(xs)) / ((max(xs) - min(xs)) or 1)
        y = (max(ys) - point["loss"]) / ((max(ys) - min(ys)) or 1)
        return _LEFT + 10 + x * (_WIDTH - _LEFT - 30), _TOP + y * (_HEIGHT - _TOP - 50)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, task["front"]))
    parts = [f'<polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="1.5"/>']
    named: dict[tuple[float, float], list[str]] = {}  # some topologies are the same network
    for kind, i, point in sorted(points, key=lambda each: each[0] == "front"):
        x, y = place(point)
        fill, radius = {"front": ("var(--accent)", 6), "random": ("var(--soft)", 3)}.get(
            kind, ("var(--bad)", 5)
        )
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}">'
        mark += f"<title>{escape(_describe(kind, point, task))}</title></circle>"
        parts.append(f'<a href="#{escape(name)}-{i}">{mark}</a>' if kind == "front" else mark)
        if kind not in ("front", "random"):
            named.setdefault((x, y), []).append(kind)
    for (x, y), kinds in named.items():
        right = x > _WIDTH * 0.75
        side = f'x="{x - 14:.1f}" text-anchor="end"' if right else f'x="{x + 14:.1f}"'
        parts.append(f'<text {side} y="{y - 5:.1f}" fill="var(--bad)">{escape(", ".join(kinds))}</text>')
    axes = (
        f'<g fill="var(--soft)"><text x="{_LEFT + 10}" y="{_HEIGHT - 24}">{_cost_text(cost, min(xs))}'
        f'</text><text x="{_WIDTH - 16}" y="{_HEIGHT - 24}" text-anchor="end">{_cost_text(cost, max(xs))}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(_cost_name(cost))}</text>'
        f'<text x="0" y="{_TOP + 8}">{max(ys):.3f}</text><text x="0" y="{_HEIGHT - 48}">{min(ys):.3f}</text>'
        f'<text x="0" y="{_HEIGHT / 2 - 20}">loss</text></g>'
    )
    return (
        f'<div class="figure curve"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" style="max-width: {_WIDTH}px" '
        f'role="img" aria-label="Loss over cost of {escape(name)}">{axes}{"".join(parts)}</svg></div>'
    )


def _table(name: str, task: Mapping[str, Any], costs: Sequence[str]) -> str:
    heads = ("network", *map(_cost_name, costs), task["metric"], "loss")
    rows = []
    for i, point in enumerate(task["front"]):
        topology = f'<span id="{escape(name)}-{i}">{_glance(point["topology"])}</span>'
        cells = [_cost_text(cost, point["costs"][cost]) for cost in costs]
        metric = format_metric(point["metrics"][task["metric"]])
        rows.append((topology, *cells, f"<b>{metric}</b>", f"{point['loss']:.4f}"))
    return figures_table([escape(head) for head in heads], rows)


def _glance(data: Mapping[str, Any]) -> str:
    """Draw a topology as dots: a row for each path, a column for each stage."""
    topology, step = Topology.from_dict(data), 11
    dots = "".join(
        f'<circle cx="{stage * step - 5}" cy="{path * step + 6}" r="{4 if topology.keeps(stage, path) else 1.2}" '
        f'fill="{PATH_COLORS[path % len(PATH_COLORS)]}"/>'
        for stage in range(1, topology.num_stages + 1)
        for path in range(topology.num_paths)
    )
    mask = topology.text(", ")
    width, height = topology.num_stages * step + 2, topology.num_paths * step + 2
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{mask}"><title>{mask}</title>{dots}</svg>'
