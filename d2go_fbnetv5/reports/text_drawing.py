"""Topologies as text: what `visualize` and the end of a search show in a terminal.

Columns are stages, Stage 0 first; rows are paths, the highest resolution first. A kept block is live if a feature
that the head reads depends on it, dead otherwise; a skipped block is a line that passes through.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from d2go_fbnetv5.arch.topology import Node, Topology


def live_blocks(topology: Topology, outputs: Collection[str]) -> frozenset[Node]:
    """Return the blocks, Stage 0's among them, that the outputs depend on; without outputs, every kept block."""
    return topology.live_nodes(outputs or [f"path{p}" for p in range(topology.num_paths)])


def live_segments(topology: Topology, outputs: Collection[str]) -> frozenset[Node]:
    """Return the (stage, path) after which the path's own line carries a feature that is used.

    The line runs from block to block through the skipped ones, and from the last block to a head.
    """
    live = live_blocks(topology, outputs)
    used: set[Node] = set()
    for (stage, path), target in topology.edges():
        if path == target[1] and target in live:
            used.update((s, path) for s in range(stage, target[0]))
    for path in range(topology.num_paths):
        if f"path{path}" in outputs:
            used.update((s, path) for s in range(last_kept(topology, path), topology.num_stages + 1))
    return frozenset(used)


def fusion_edges(topology: Topology) -> tuple[tuple[Node, Node], ...]:
    """Return the connections between different paths."""
    return tuple(edge for edge in topology.edges() if edge[0][1] != edge[1][1])


def last_kept(topology: Topology, path: int) -> int:
    """Return the stage of the path's last kept block; 0 where only Stage 0 is."""
    return next(s for s in range(topology.num_stages, -1, -1) if topology.keeps(s, path))


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
    """Draw the topology as text of a few lines, 6 characters a stage.

    Between two rows stands what crosses there: features fused to lower resolutions, to higher ones, or both.

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
            lines.append(_crossings(topology, path, live, glyphs))
    if legend:
        lines.append(
            f"{glyphs.kept} kept  {glyphs.dead} kept, not used by the head  {glyphs.line} passes through  "
            f"{glyphs.down} {glyphs.up} fused down, up"
        )
    return "\n".join(lines)


def _crossings(topology: Topology, path: int, live: frozenset[Node], glyphs: _Glyphs) -> str:
    """Return what passes between the rows of ``path`` and ``path + 1``, after each stage."""
    edges = [edge for edge in fusion_edges(topology) if edge[1] in live]
    row = " " * 9 + f" {glyphs.stage0} "
    for stage in range(topology.num_stages):
        pairs = [(a[1], b[1]) for a, b in edges if a[0] == stage]
        down = any(a <= path < b for a, b in pairs)
        up = any(b <= path < a for a, b in pairs)
        row += f" {glyphs.both if down and up else glyphs.down if down else glyphs.up if up else ' '}    "
    return row.rstrip()
