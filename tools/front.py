"""Find each task's front: the networks of a search that no other one beats in both loss and cost.

    python tools/front.py output/demo
    python tools/front.py output/demo --tasks det seg --cost flops params --evaluations 400 --num-processes 4

Written into RUN/front: front.json, front.html, front.svg and front.png. Stopped, the same command goes on, with as many
processes as you like: what it ends with is the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from d2go_fbnetv5.engine.launch import launch
from d2go_fbnetv5.front.run import find_front
from d2go_fbnetv5.front.searches import search_device
from d2go_fbnetv5.utils.arguments import ToolParser, check_least
from d2go_fbnetv5.utils.errors import run_tool
from d2go_fbnetv5.utils.ranks import is_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("front", lambda: _run(args), "Run the same command to go on.")


def _run(args: argparse.Namespace) -> None:
    check_least(args, population=2, evaluations=args.population, seed=0)
    device = search_device(args.run)
    launch(_find, (args,), num_processes=args.num_processes, device=device.split(":")[0])


def _find(args: argparse.Namespace) -> None:
    with Progress(console=Console(stderr=True), transient=True, disable=not is_main()) as progress:
        bar = progress.add_task("judging networks", total=1)
        path = find_front(
            args.run,
            args.tasks,
            args.cost,
            args.evaluations,
            args.population,
            args.seed,
            lambda done: progress.update(bar, completed=done),
        )
    if is_main():
        print(f"Wrote {path}, and its page {path.with_suffix('.html').name} beside it")


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("front", __doc__)
    parser.add_argument("run", help="the folder of a search")
    parser.add_argument("--tasks", nargs="+", default=[], help="of the search; default: all")
    parser.add_argument(
        "--cost", nargs="+", default=["flops"], help="flops, params, or files of latency tables"
    )
    parser.add_argument(
        "--evaluations", type=int, default=400, help="networks judged for each task (default 400)"
    )
    parser.add_argument("--population", type=int, default=40, help="of NSGA-II (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="that judge networks (default 1)"
    )
    return parser


if __name__ == "__main__":
    cli()
