"""Take a task's network out of a search, with its weights, as a folder that predict, export and benchmark open.

    python tools/extract.py output/search --task det
    python tools/extract.py output/search --task det --budget flops=9e6 --output output/det_9m

The search must have the model's own head for the task (SEARCH.HEADS.det.head lite). With --budget the network is picked
of RUN/front/front.json. `train_net` judges it with --eval-only, and trains it further as MODEL.WEIGHTS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2go_fbnetv5.front.extract import extract_network
from d2go_fbnetv5.utils.arguments import ToolParser, add_budget, parse_budget
from d2go_fbnetv5.utils.errors import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("extract", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    output = Path(args.output or Path(args.run, "extracted", args.task))
    extract_network(args.run, args.task, output, parse_budget(args.budget))
    print(f"Wrote {output}")


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("extract", __doc__)
    parser.add_argument("run", help="the folder of a search")
    parser.add_argument("--task", required=True, help="of the search")
    add_budget(parser)
    parser.add_argument("--output", metavar="DIR", help="the folder to write; default: RUN/extracted/TASK")
    return parser


if __name__ == "__main__":
    cli()
