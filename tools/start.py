"""From photographs to a file for a phone: labels by a teacher, search, front, training and export, one after another.

    python tools/start.py photos --task det --budget "12 ms" --latency-table phone.csv \
        --teacher torchvision model=fasterrcnn_resnet50_fpn_v2
    python tools/start.py photos --task cls --budget "500M flops" --teacher dataset

The folder --output gets the configuration of every step, which may be changed before it is run, and steps.sh with all
commands, each of which can be run alone. Ended at any time, the same command goes on; a step whose result is there is
not run again. --dry-run writes the files, shows the commands and runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from d2go_fbnetv5.tools import export, front, pseudo_label, train_net

from d2go_fbnetv5.pipeline import TASKS, Wishes, begin, plan
from d2go_fbnetv5.utils.arguments import ToolParser, check_least
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.watching import watched

_GOES_ON = "the same command goes on"
_TOOLS = {"pseudo_label": pseudo_label, "train_net": train_net, "front": front, "export": export}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, that of the step that failed, or 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("start", lambda: _run(args), _GOES_ON)


def _run(args: argparse.Namespace) -> int:
    check_least(args, size=0, iterations=0, evaluations=40, num_processes=1)
    wishes = _wishes(args)
    steps = plan(wishes, args.num_processes)
    begin(wishes, steps)
    for number, step in enumerate(steps, start=1):
        done = step.is_done()
        print(f"[{number}/{len(steps)}] {step.command}{'    # done' if done else ''}", flush=True)
        if done or args.dry_run:
            continue
        status = _TOOLS[step.tool].main(step.arguments)
        if status:
            print(f"start: step {step.name} ended with status {status}; {_GOES_ON}", file=sys.stderr)
            return status
    if not args.dry_run:
        print(
            f"{Path(wishes.output, wishes.format)} has the network, {Path(wishes.output, wishes.task)} its training"
        )
    return 0


def _wishes(args: argparse.Namespace) -> Wishes:
    name, *pairs = args.teacher
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--teacher {name} {pair}: expected KEY=VALUE, such as weights=COCO_V1")
    return Wishes(
        photos=args.photos,
        output=args.output or str(Path("output", f"{Path(args.photos).resolve().name}_{args.task}")),
        task=args.task,
        teacher=name,
        options=dict(pair.split("=", 1) for pair in pairs),
        budget=args.budget,
        latency_table=args.latency_table or "",
        device=args.device,
        family=args.family or "",
        size=args.size,
        iterations=args.iterations,
        weights=args.weights or "",
        evaluations=args.evaluations,
        format=args.format,
    )


def cli() -> None:
    """The console script."""
    sys.exit(watched("start", main, _GOES_ON))


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("start", __doc__)
    parser.add_argument(
        "photos", metavar="FOLDER", help="of photographs, in folders of their own if one likes"
    )
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument(
        "--teacher",
        required=True,
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="who labels the photographs, as in a pseudo-label file, with its options; 'dataset' keeps the classes "
        "that folders are named by",
    )
    parser.add_argument(
        "--budget",
        required=True,
        help="the most that the backbone may cost: '12 ms', '300M flops', '500k params'",
    )
    parser.add_argument("--latency-table", metavar="FILE", help="of the phone, for a budget in ms")
    parser.add_argument("--output", metavar="DIR", help="(default: output/FOLDER_TASK)")
    parser.add_argument(
        "--dry-run", action="store_true", help="write the configurations and show the commands"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda (default: cuda if it is there)",
    )
    parser.add_argument("--family", help="of networks (default: A, without a GPU N)")
    parser.add_argument(
        "--size", type=int, default=0, metavar="N", help="pixels of an image's side (default: 224, 96)"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=0,
        metavar="N",
        help="of the search, and of the training (default: 10000 and 20000, 3000)",
    )
    parser.add_argument("--weights", metavar="FILE", help="that the search's supernet starts from")
    parser.add_argument(
        "--evaluations",
        type=int,
        default=200,
        metavar="N",
        help="networks judged for the front (default: 200)",
    )
    parser.add_argument("--format", default="executorch", help="of the file (default: executorch)")
    parser.add_argument("--num-processes", type=int, default=1, metavar="N", help="one a GPU (default: 1)")
    return parser


if __name__ == "__main__":
    cli()
