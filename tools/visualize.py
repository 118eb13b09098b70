"""Draw what a search found, or a named topology, in the terminal or as a picture; compare several searches.

python tools/visualize.py output/demo                                    the topologies of a run
python tools/visualize.py output/demo --output topologies.svg            ... as a picture
python tools/visualize.py output/demo/front/front.json --budget flops=9e6    the best of a front that cost no more
python tools/visualize.py output/demo --probabilities                    every block's probability over time
python tools/visualize.py output/seed0 output/seed1 output/seed2         whether several runs found the same
python tools/visualize.py output/seed* --output agreement.html           ... on a page, or as a picture
python tools/visualize.py --named unet --stages 7                        a topology of the paper's Appendix C
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.reports.drawing import Panel, draw_figure, save_figure
from d2go_fbnetv5.reports.history import METRICS_FILE, read_history, series, thin
from d2go_fbnetv5.reports.plots import probabilities_figure
from d2go_fbnetv5.reports.run_agreement import read_agreement
from d2go_fbnetv5.reports.run_agreement_page import agreement_figure, agreement_page, agreement_table
from d2go_fbnetv5.reports.text_drawing import draw_text
from d2go_fbnetv5.utils.arguments import ToolParser, add_budget, parse_budget
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.files import refuse_others, write_atomically
from d2go_fbnetv5.utils.formatting import format_count
from d2go_fbnetv5.utils.text_files import expand_user

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = "▁▂▃▄▅▆▇█"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("visualize", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    args.sources = [expand_user(source) for source in args.sources]
    args.output = expand_user(args.output) if args.output else None
    if args.output:
        refuse_others(args.output)
    if args.budget and (len(args.sources) != 1 or args.named or args.probabilities):
        raise InputError(f"--budget {' '.join(args.budget)}: is for the networks of one front.json")
    ascii_only = args.ascii or not _shows(_LEVELS + "█░─┄╲╱╳↓▶·")
    if len(args.sources) > 1:
        text = _agreement(args)
    else:
        args.source = args.sources[0] if args.sources else None
        draw = _probabilities if args.probabilities else _topologies
        figure, text = draw(args, ascii_only)
        if figure is not None:
            save_figure(figure, args.output)
    print(f"Wrote {args.output}" if args.output else text)


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("visualize", __doc__)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="RUN_DIR",
        help="a search's output folder, a topologies.json or a front.json; several searches are compared",
    )
    add_budget(parser)
    parser.add_argument(
        "--named", metavar="NAME", help="linear, unet, fpn, panet or bifpn instead of a search's"
    )
    parser.add_argument("--stages", type=int, default=7, help="searchable stages of --named (default 7)")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; may be repeated")
    parser.add_argument(
        "--probabilities", action="store_true", help="probabilities over time, from metrics.json"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write a picture, .svg, .png or .pdf, instead of text; of several runs also a page, .html",
    )
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    return parser


def _agreement(args: argparse.Namespace) -> str:
    """Write the output for several runs, if there is one, or return the table."""
    if args.named or args.probabilities:
        raise InputError("--named and --probabilities are for one at a time; several RUN_DIR are compared")
    agreements = read_agreement(args.sources, args.task)
    if args.output and Path(args.output).suffix == ".html":
        write_atomically(Path(args.output), agreement_page(agreements))
    elif args.output:
        save_figure(agreement_figure(agreements), args.output)
    text = io.StringIO()
    console = Console(file=text, width=max(80, shutil.get_terminal_size().columns), force_terminal=False)
    console.print(agreement_table(agreements, args.ascii or not _shows("–─")))
    return text.getvalue().rstrip()


def _topologies(args: argparse.Namespace, ascii_only: bool) -> tuple[Figure | None, str]:
    if (args.source is None) == (args.named is None):
        raise InputError("give either RUN_DIR (or a topologies.json) or --named NAME")
    panels = _named_panels(args) if args.named else _file_panels(args)
    blocks = []
    for index, panel in enumerate(panels):
        last = index == len(panels) - 1
        drawing = draw_text(panel.topology, panel.outputs, ascii_only=ascii_only, legend=last)
        title = f"{panel.title}: {panel.note}" if panel.note else panel.title
        blocks.append(f"{title}\n\n{drawing}")
    return (draw_figure(panels) if args.output else None), "\n\n".join(blocks)


def _named_panels(args: argparse.Namespace) -> list[Panel]:
    topology = Topology.named(args.named, stages=args.stages)
    blocks = topology.num_stages * topology.num_paths
    return [Panel(args.named, topology, note=f"{topology.num_kept} of {blocks} blocks kept")]


def _file_panels(args: argparse.Namespace) -> list[Panel]:
    source = Path(args.source)
    path = source / "topologies.json" if source.is_dir() else source
    if not path.is_file():
        hint = "; --probabilities shows a search under way" if source.is_dir() else ""
        raise InputError(f"{path}: no such file{hint}")
    file = load_topologies(path)
    panels = []
    for name in args.task or file.tasks:
        entry = file.task(name, parse_budget(args.budget))
        topology, used = entry.topology, entry.topology.prune(entry.outputs).num_kept
        blocks = topology.num_stages * topology.num_paths
        note = f"{topology.num_kept} of {blocks} blocks kept, {used} used by the head"
        if entry.flops_pruned is not None:
            note += f", {format_count(entry.flops_pruned)} FLOPs"
        panels.append(Panel(name, topology, entry.outputs, note))
    return panels


def _probabilities(args: argparse.Namespace, ascii_only: bool) -> tuple[Figure | None, str]:
    if args.source is None or args.named:
        raise InputError("--probabilities needs RUN_DIR, a search's output folder")
    folder = Path(args.source) if Path(args.source).is_dir() else Path(args.source).parent
    history = read_history(folder)
    found = list(dict.fromkeys(key[6:] for line in history for key in line if key.startswith("probs/")))
    if not found:
        raise InputError(f"{folder / METRICS_FILE}: no probabilities of a search")
    unknown = [task for task in args.task or () if task not in found]
    if unknown:
        raise InputError(f"{folder / METRICS_FILE}: no task {unknown[0]!r}; available: {', '.join(found)}")
    tasks = args.task or found
    figure = probabilities_figure(history, tasks) if args.output else None
    return figure, "\n\n".join(
        _sparklines(task, *series(history, f"probs/{task}"), ascii_only) for task in tasks
    )


def _sparklines(task: str, iterations: list[int], probs: list[list[list[float]]], ascii_only: bool) -> str:
    """A task's probabilities as text: each block's curve, from start to now, and its value now."""
    when = (
        f"iteration {iterations[-1]}"
        if len(probs) == 1
        else f"iterations {iterations[0]} to {iterations[-1]}"
    )
    lines = [f"{task}: probability of each block, {when}", ""]
    lines.append(
        "Stage".ljust(9) + "".join(f"{stage:<10}" for stage in range(1, len(probs[-1]) + 1)).rstrip()
    )
    moments = [probs[i] for i in thin(len(probs), 4)]
    for path in range(len(probs[-1][0])):
        cells = []
        for stage in range(len(probs[-1])):
            curve = "".join(_LEVELS[min(7, int(8 * moment[stage][path]))] for moment in moments)
            value = f"{probs[-1][stage][path]:.2f}"
            cells.append((value if ascii_only else f"{curve} {value}").ljust(10))
        lines.append(f"Path {path}".ljust(9) + "".join(cells).rstrip())
    return "\n".join(lines)


def _shows(characters: str) -> bool:
    """Return whether the terminal's encoding has the characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


if __name__ == "__main__":
    cli()
