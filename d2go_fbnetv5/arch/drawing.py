"""Pictures of topologies in the manner of Figure 3: in a terminal, and as SVG or PNG.

Columns are stages, Stage 0 first; rows are paths, the highest resolution first. A kept block is drawn as live
if a feature that the head reads depends on it, as dead otherwise; a skipped block is a line that passes through.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .topology import Node, Topology

PATH_COLORS = ("#4aa8d8", "#3d7dca", "#5559c1", "#7a3f9d")
DEAD_COLOR, SKIPPED_COLOR, LINE_COLOR, TEXT_COLOR = "#d4d7dc", "#d4d7dc", "#59616d", "#1d2430"
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


# ------------------------------------------------------------------------------------------ what is drawn how


def live_blocks(topology: Topology, outputs: Collection[str]) -> frozenset[Node]:
    """The blocks, Stage 0's among them, that the outputs depend on; without outputs, every kept block."""
    return topology.live_nodes(outputs or [f"path{p}" for p in range(topology.num_paths)])


def live_segments(topology: Topology, outputs: Collection[str]) -> frozenset[Node]:
    """The (stage, path) after which the path's own line carries a feature that is used.

    The line runs from block to block through the skipped ones, and from the last block to a head.
    """
    live = live_blocks(topology, outputs)
    used: set[Node] = set()
    for (stage, path), target in topology.edges():
        if path == target[1] and target in live:
            used.update((s, path) for s in range(stage, target[0]))
    for path in range(topology.num_paths):
        if f"path{path}" in outputs:
            last = next(s for s in range(topology.num_stages, -1, -1) if topology.keeps(s, path))
            used.update((s, path) for s in range(last, topology.num_stages + 1))
    return frozenset(used)


def fusion_edges(topology: Topology) -> tuple[tuple[Node, Node], ...]:
    """The connections between different paths."""
    return tuple(edge for edge in topology.edges() if edge[0][1] != edge[1][1])


# ------------------------------------------------------------------------------------------------- terminal


@dataclass(frozen=True)
class _Glyphs:
    kept: str
    dead: str
    line: str
    idle: str
    down: str
    up: str
    both: str
    stage0: str
    head: str


_UNICODE = _Glyphs("███", "░░░", "───", "┄┄┄", "╲", "╱", "╳", "↓", "▶")
_ASCII = _Glyphs("[#]", "[x]", "---", "...", "\\", "/", "X", "v", ">")


def draw_text(
    topology: Topology,
    outputs: Collection[str] = (),
    head: str = "head",
    ascii_only: bool = False,
    legend: bool = True,
) -> str:
    """The topology as text of a few lines, 6 characters a stage.

    Between two rows stands what crosses there: features fused towards lower resolutions, higher ones, or both.

    Args:
        outputs: the paths the head reads; empty for no head.
        head: what the mark at the end of those paths says.
        ascii_only: for terminals that cannot show box-drawing characters.
    """
    glyphs = _ASCII if ascii_only else _UNICODE
    live, used = live_blocks(topology, outputs), live_segments(topology, outputs)
    stages = range(topology.num_stages + 1)
    lines = ["Stage".ljust(8) + "".join(f"{s:^6}" for s in stages).rstrip()]
    for path in range(topology.num_paths):
        row = f"Path {path}".ljust(9)
        for stage in stages:
            through = glyphs.line if (stage - 1, path) in used and (stage, path) in used else glyphs.idle
            block = glyphs.kept if (stage, path) in live else glyphs.dead
            row += block if topology.keeps(stage, path) else through
            if stage < topology.num_stages or f"path{path}" in outputs:
                row += glyphs.line if (stage, path) in used else glyphs.idle
        lines.append(f"{row}{glyphs.head} {head}" if f"path{path}" in outputs else row)
        if path + 1 < topology.num_paths:
            lines.append(_crossings(topology, path, glyphs))
    if legend:
        lines.append(
            f"{glyphs.kept} kept  {glyphs.dead} kept, not used by the head  {glyphs.line} passes through  "
            f"{glyphs.down} {glyphs.up} fused down, up"
        )
    return "\n".join(lines)


def _crossings(topology: Topology, path: int, glyphs: _Glyphs) -> str:
    """What passes between the rows of ``path`` and ``path + 1``, after each stage."""
    row = " " * 9 + f" {glyphs.stage0} "
    for stage in range(topology.num_stages):
        pairs = [(a[1], b[1]) for a, b in fusion_edges(topology) if a[0] == stage]
        down = any(a <= path < b for a, b in pairs)
        up = any(b <= path < a for a, b in pairs)
        row += f" {glyphs.both if down and up else glyphs.down if down else glyphs.up if up else ' '}    "
    return row.rstrip()


# -------------------------------------------------------------------------------------------------- picture


def draw_figure(panels: Sequence[Panel]) -> Figure:
    """The panels' topologies, one below the other.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("no topology to draw")
    stages = max(panel.topology.num_stages for panel in panels)
    heights = [panel.topology.num_paths * _INCH_PER_PATH + 0.62 for panel in panels]
    width, legend = (stages + 2.35) * _INCH_PER_STAGE, 0.36
    figure = Figure(figsize=(width, sum(heights) + legend), facecolor="white")
    FigureCanvasAgg(figure)
    total, top = sum(heights) + legend, sum(heights) + legend
    for panel, height in zip(panels, heights, strict=True):
        top -= height
        axes = figure.add_axes((0, top / total, 1, height / total))
        axes.set_axis_off()
        axes.set_xlim(-0.95, stages + 1.4)
        axes.set_ylim(panel.topology.num_paths - 0.4, -1.4 + 0.4 * 0.62 / _INCH_PER_PATH)
        _draw_panel(axes, panel)
    _draw_legend(figure.add_axes((0, 0, 1, legend / total)), stages)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as the file's suffix says: .svg, .png or .pdf. Equal figures give equal bytes.

    Raises:
        ValueError: another suffix.
    """
    target = Path(path)
    metadata = {
        ".svg": {"Date": None, "Creator": None},
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None},
    }
    if target.suffix not in metadata:
        raise ValueError(f"{target}: cannot draw {target.suffix!r}; allowed are {', '.join(metadata)}")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "d2go_fbnetv5", "svg.fonttype": "path"}):
            figure.savefig(temporary, format=target.suffix[1:], dpi=144, metadata=metadata[target.suffix])
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    topology, outputs = panel.topology, panel.outputs
    live, used = live_blocks(topology, outputs), live_segments(topology, outputs)
    axes.text(-0.8, -0.93, panel.title, fontsize=12, weight="bold", color=TEXT_COLOR, va="center")
    axes.text(0.0 - _BOX_WIDTH / 2, -0.93, panel.note, fontsize=9.5, color=LINE_COLOR, va="center")
    for stage in range(topology.num_stages + 1):
        axes.text(stage, -0.52, f"Stage {stage}", fontsize=7.5, color=LINE_COLOR, ha="center", va="center")
    for path in range(topology.num_paths):
        axes.text(-0.8, path, f"Path {path}", fontsize=8.5, color=LINE_COLOR, va="center")
        _draw_line(axes, topology, path, used)
        if f"path{path}" in outputs:
            _draw_head(axes, topology.num_stages + 1, path)
        if path > 0:
            alive = (0, path) in live
            _arrow(axes, (0, path - 1 + 0.29), (0, path - 0.29), LINE_COLOR if alive else SKIPPED_COLOR, 1.2)
    for source, target in fusion_edges(topology):
        color = DOWN_COLOR if source[1] < target[1] else UP_COLOR
        _draw_fusion(axes, source, target, color if target in live else SKIPPED_COLOR)
    for stage in range(topology.num_stages + 1):
        for path in range(topology.num_paths):
            _draw_block(axes, topology, (stage, path), live)


def _draw_line(axes: Axes, topology: Topology, path: int, used: frozenset[Node]) -> None:
    """A path's identity connections, with an arrow into each kept block."""
    for stage in range(topology.num_stages):
        carries = (stage, path) in used
        color, width = (LINE_COLOR, 1.3) if carries else (SKIPPED_COLOR, 1.0)
        start = stage + (_BOX_WIDTH / 2 if topology.keeps(stage, path) else 0)
        if topology.keeps(stage + 1, path):
            _arrow(axes, (start, path), (stage + 1 - _BOX_WIDTH / 2, path), color, width)
        else:
            axes.plot(
                [start, stage + 1], [path, path], color=color, lw=width, zorder=2, solid_capstyle="butt"
            )


def _draw_block(axes: Axes, topology: Topology, node: Node, live: frozenset[Node]) -> None:
    stage, path = node
    height = 0.56 - 0.05 * path  # the lower the resolution, the lower the box
    kept = topology.keeps(stage, path)
    color = PATH_COLORS[min(path, len(PATH_COLORS) - 1)]
    style = {"facecolor": "none", "edgecolor": SKIPPED_COLOR, "linestyle": (0, (2, 2)), "linewidth": 0.9}
    if kept and node in live:
        style = {"facecolor": color, "edgecolor": color, "linewidth": 1.0}
    elif kept:
        style = {"facecolor": DEAD_COLOR, "edgecolor": "#aab0b8", "linewidth": 1.0}
    axes.add_patch(_rounded_box(stage, path, _BOX_WIDTH, height, zorder=4 if kept else 1, **style))


def _draw_head(axes: Axes, x: float, path: int) -> None:
    start = x - 1 + _BOX_WIDTH / 2
    axes.plot([x - 1, start], [path, path], color=LINE_COLOR, lw=1.3, zorder=2, solid_capstyle="butt")
    _arrow(axes, (start, path), (x - 0.3, path), LINE_COLOR, 1.3)
    axes.add_patch(
        _rounded_box(x, path, 0.6, 0.42, zorder=4, facecolor="white", edgecolor=TEXT_COLOR, linewidth=1.2)
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


def _rounded_box(x: float, y: float, width: float, height: float, **style: object) -> FancyBboxPatch:
    corner = 0.07
    return FancyBboxPatch(
        (x - width / 2 + corner, y - height / 2 + corner),
        width - 2 * corner,
        height - 2 * corner,
        boxstyle=f"round,pad={corner},rounding_size={corner}",
        mutation_aspect=1,
        **style,
    )


def _draw_legend(axes: Axes, stages: int) -> None:
    axes.set_axis_off()
    axes.set_xlim(-0.95, stages + 1.4)
    axes.set_ylim(0.5, -0.5)
    box = {"facecolor": PATH_COLORS[1], "edgecolor": PATH_COLORS[1]}
    dead = {"facecolor": DEAD_COLOR, "edgecolor": "#aab0b8"}
    skipped = {"facecolor": "none", "edgecolor": SKIPPED_COLOR, "linestyle": (0, (2, 2))}
    x = -0.8
    for style, label, advance in (
        (box, "kept", 0.95),
        (dead, "kept, unused by the head", 2.05),
        (skipped, "skipped", 1.1),
    ):
        axes.add_patch(_rounded_box(x + 0.13, 0, 0.26, 0.5, **style))
        axes.text(x + 0.34, 0.02, label, fontsize=8, color=LINE_COLOR, va="center")
        x += advance
    for color, label, advance in (
        (DOWN_COLOR, "fused to lower resolution", 2.05),
        (UP_COLOR, "to higher resolution", 1.5),
    ):
        _arrow(axes, (x, 0), (x + 0.32, 0), color, 1.2)
        axes.text(x + 0.4, 0.02, label, fontsize=8, color=LINE_COLOR, va="center")
        x += advance
