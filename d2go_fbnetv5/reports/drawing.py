"""Pictures of topologies in the manner of Figure 3, as SVG or PNG.

Columns are stages, Stage 0 first; rows are paths, the highest resolution first. A kept block is coloured if a
feature that the head reads depends on it and grey otherwise; a skipped block is an outline that the path's own
line passes through.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from d2go_fbnetv5.arch.topology import Node, Topology
from d2go_fbnetv5.reports.text_drawing import fusion_edges, last_kept, live_blocks
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import SIGNATURE, replacing

PATH_COLORS = ("#4aa8d8", "#3d7dca", "#5559c1", "#7a3f9d")
DEAD_COLOR, DEAD_EDGE_COLOR, SKIPPED_COLOR = "#d4d7dc", "#aab0b8", "#d4d7dc"
LINE_COLOR, TEXT_COLOR = "#59616d", "#1d2430"
DOWN_COLOR, UP_COLOR = "#d1603d", "#2f9e83"

_INCH_PER_STAGE, _INCH_PER_PATH = 1.02, 0.62
_BOX_WIDTH = 0.46  # in units of the distance between two stages


@dataclass(frozen=True)
class Panel:
    """One topology of a picture."""

    title: str
    topology: Topology
    outputs: tuple[str, ...] = ()  # the paths the head reads; empty: no head, every kept block is live
    note: str = ""  # beside the title, such as "14 of 28 blocks"


def draw_figure(panels: Sequence[Panel]) -> Figure:
    """Draw the panels' topologies, one below the other.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise InputError("no topology to draw")
    stages = max(3, *(panel.topology.num_stages for panel in panels))  # 3: room for the legend
    rows = _legend_rows(stages)
    heights = [(panel.topology.num_paths + 0.95) * _INCH_PER_PATH for panel in panels]
    width, legend = (stages + 2.35) * _INCH_PER_STAGE, 0.4 * len(rows)
    total = top = sum(heights) + legend
    figure = Figure(figsize=(width, total), facecolor="white")
    FigureCanvasAgg(figure)
    for panel, height in zip(panels, heights, strict=True):
        top -= height
        axes = figure.add_axes((0, top / total, 1, height / total))
        axes.set_axis_off()
        axes.set_xlim(-0.95, stages + 1.4)
        axes.set_ylim(panel.topology.num_paths - 0.35, -1.3)
        _draw_panel(axes, panel)
    _draw_legend(figure.add_axes((0, 0, 1, legend / total)), stages, rows)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as the file's suffix says: .svg, .png or .pdf. Equal figures give equal bytes.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: the folder does not exist.
    """
    target = Path(path)
    metadata = {
        ".svg": {"Date": None, "Creator": SIGNATURE},
        ".png": {"Software": SIGNATURE},
        ".pdf": {"CreationDate": None, "Creator": SIGNATURE},
    }
    if target.suffix not in metadata:
        raise InputError(f"{target}: cannot draw {target.suffix!r}; allowed are {', '.join(metadata)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder")
    with (
        replacing(target) as temporary,
        matplotlib.rc_context({"svg.hashsalt": "d2go_fbnetv5", "svg.fonttype": "path"}),
    ):
        figure.savefig(temporary, format=target.suffix[1:], dpi=144, metadata=metadata[target.suffix])


def _draw_panel(axes: Axes, panel: Panel) -> None:
    topology, outputs = panel.topology, panel.outputs
    live = live_blocks(topology, outputs)
    title = axes.text(
        -0.8, -0.95, panel.title, fontsize=12, weight="bold", color=TEXT_COLOR, va="center", parse_math=False
    )
    axes.annotate(
        panel.note,
        xy=(1, 0.5),
        xycoords=title,
        xytext=(10, 0),
        textcoords="offset points",
        fontsize=9.5,
        color=LINE_COLOR,
        va="center",
        parse_math=False,
    )
    _draw_lines(axes, topology, outputs, live)
    for stage in range(topology.num_stages + 1):
        axes.text(stage, -0.52, f"Stage {stage}", fontsize=7.5, color=LINE_COLOR, ha="center", va="center")
    for path in range(topology.num_paths):
        axes.text(-0.8, path, f"Path {path}", fontsize=8.5, color=LINE_COLOR, va="center")
        if path > 0:
            alive = (0, path) in live
            _arrow(axes, (0, path - 1 + 0.29), (0, path - 0.29), LINE_COLOR if alive else SKIPPED_COLOR, 1.2)
    for source, target in fusion_edges(topology):
        color = DOWN_COLOR if source[1] < target[1] else UP_COLOR
        _draw_fusion(axes, source, target, color if target in live else SKIPPED_COLOR)
    for stage in range(topology.num_stages + 1):
        for path in range(topology.num_paths):
            _draw_block(axes, topology, (stage, path), live)


def _draw_lines(axes: Axes, topology: Topology, outputs: Collection[str], live: frozenset[Node]) -> None:
    """The paths' own lines: from block to block, and from the last block to a head or to the end."""
    for source, target in topology.edges():
        if source[1] == target[1]:
            color, width = (LINE_COLOR, 1.3) if target in live else (SKIPPED_COLOR, 1.0)
            start, end = source[0] + _BOX_WIDTH / 2, target[0] - _BOX_WIDTH / 2
            _arrow(axes, (start, source[1]), (end, source[1]), color, width)
    for path in range(topology.num_paths):
        start = last_kept(topology, path) + _BOX_WIDTH / 2
        if f"path{path}" in outputs:
            _draw_head(axes, start, topology.num_stages + 1, path)
        else:
            end = topology.num_stages + _BOX_WIDTH / 2
            axes.plot([start, end], [path, path], color=SKIPPED_COLOR, lw=1.0, zorder=2)


def _draw_block(axes: Axes, topology: Topology, node: Node, live: frozenset[Node]) -> None:
    stage, path = node
    height = 0.56 - 0.05 * path  # the lower the resolution, the lower the box
    kept = topology.keeps(stage, path)
    color = PATH_COLORS[min(path, len(PATH_COLORS) - 1)]
    style = {"facecolor": "none", "edgecolor": SKIPPED_COLOR, "linestyle": (0, (2, 2)), "linewidth": 0.9}
    if kept and node in live:
        style = {"facecolor": color, "edgecolor": color, "linewidth": 1.0}
    elif kept:
        style = {"facecolor": DEAD_COLOR, "edgecolor": DEAD_EDGE_COLOR, "linewidth": 1.0}
    axes.add_patch(_rounded_box(stage, path, _BOX_WIDTH, height, zorder=4 if kept else 1, **style))


def _draw_head(axes: Axes, start: float, x: float, path: int) -> None:
    _arrow(axes, (start, path), (x - 0.3, path), LINE_COLOR, 1.3)
    axes.add_patch(
        _rounded_box(x, path, 0.6, 0.42, zorder=4, facecolor="none", edgecolor=TEXT_COLOR, linewidth=1.2)
    )
    axes.text(x, path + 0.01, "head", fontsize=8.5, color=TEXT_COLOR, ha="center", va="center", zorder=5)


def _draw_fusion(axes: Axes, source: Node, target: Node, color: str) -> None:
    start = (source[0] + _BOX_WIDTH / 2, source[1] + (0.1 if target[1] > source[1] else -0.1))
    end = (target[0] - _BOX_WIDTH / 2, target[1] + (0.1 if target[1] < source[1] else -0.1))
    _arrow(axes, start, end, color, 0.9, zorder=3)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    width: float,
    zorder: int = 2,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>,head_length=3.2,head_width=1.6",
            mutation_scale=1,
            shrinkA=0,
            shrinkB=0,
            color=color,
            linewidth=width,
            zorder=zorder,
        )
    )


def _rounded_box(x: float, y: float, width: float, height: float, **style: Any) -> FancyBboxPatch:
    corner = 0.07
    return FancyBboxPatch(
        (x - width / 2 + corner, y - height / 2 + corner),
        width - 2 * corner,
        height - 2 * corner,
        boxstyle=f"round,pad={corner},rounding_size={corner}",
        mutation_aspect=1,
        **style,
    )


def _legend_rows(stages: int) -> list[list[str]]:
    """Return what the legend explains, in one row where the picture is wide enough for it."""
    blocks, arrows = ["kept", "dead", "skipped"], ["down", "up"]
    return [blocks + arrows] if stages >= 6 else [blocks, arrows]


def _draw_legend(axes: Axes, stages: int, rows: list[list[str]]) -> None:
    axes.set_axis_off()
    axes.set_xlim(-0.95, stages + 1.4)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    boxes: dict[str, tuple[str, dict[str, Any], float]] = {
        "kept": ("kept", {"facecolor": PATH_COLORS[1], "edgecolor": PATH_COLORS[1]}, 0.95),
        "dead": ("kept, unused by the head", {"facecolor": DEAD_COLOR, "edgecolor": DEAD_EDGE_COLOR}, 2.05),
        "skipped": (
            "skipped",
            {"facecolor": "none", "edgecolor": SKIPPED_COLOR, "linestyle": (0, (2, 2))},
            1.1,
        ),
    }
    arrows = {
        "down": ("fused to lower resolution", DOWN_COLOR, 2.05),
        "up": ("to higher resolution", UP_COLOR, 1.5),
    }
    for y, row in enumerate(rows):
        x = -0.8
        for key in row:
            if key in boxes:
                label, style, advance = boxes[key]
                axes.add_patch(_rounded_box(x + 0.13, y, 0.26, 0.5, **style))
            else:
                label, color, advance = arrows[key]
                _arrow(axes, (x, y), (x + 0.26, y), color, 1.2)
            axes.text(x + 0.34, y + 0.02, label, fontsize=8, color=LINE_COLOR, va="center")
            x += advance
