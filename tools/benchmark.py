"""Measure models side by side: latency, file size, memory, and a metric, in every format.

    python tools/benchmark.py FBNetV5-A_C-CLS --formats executorch onnx
    python tools/benchmark.py output/cls_digits output/det_digits --max-images 200 --output bench

A model is one of the zoo (with random weights, to be timed), the OUTPUT_DIR of a finished training,
pretrained/FBNetV5-N-DET (of the zoo, with the package's weights), timm/NAME or torchvision/NAME. The folder --output
gets the exported files, benchmark.md and benchmark.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from d2go_fbnetv5.export.formats.base import get_format, list_formats, split_int8
from d2go_fbnetv5.export.measure.benchmark import Evaluate, benchmark_formats, markdown, run_benchmark
from d2go_fbnetv5.export.measure.evaluation import evaluate_run
from d2go_fbnetv5.export.measure.subjects import BASELINES
from d2go_fbnetv5.export.measure.timing import machine, versions
from d2go_fbnetv5.utils.arguments import ToolParser, check_least, parse_size
from d2go_fbnetv5.utils.errors import run_tool
from d2go_fbnetv5.utils.files import SIGNATURE, refuse_others, write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("benchmark", lambda: print(_run(args)))


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("benchmark", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=list_formats("usual"),
        metavar="FORMAT",
        help=f"some of {', '.join(benchmark_formats())} (default: {' '.join(list_formats('usual'))})",
    )
    parser.add_argument(
        "--sizes", nargs="+", default=[], metavar="HxW", help="of images; default: each model's usual one"
    )
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help="files take the size that they are measured at alone, in formats that have that",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        default=list(BASELINES),
        metavar="MODEL",
        help=f"to compare with; default: {', '.join(BASELINES)}; --baselines alone for none",
    )
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of latency (30)")
    parser.add_argument(
        "--max-images",
        type=int,
        default=0,
        metavar="N",
        help="of the test set, for the metric of a finished training's files; 0, the default, for no metric",
    )
    parser.add_argument("--output", default="benchmark", metavar="DIR", help="(default: benchmark)")
    return parser


def _run(args: argparse.Namespace) -> str:
    sizes = [parse_size(text, "--sizes") for text in args.sizes]
    check_least(args, rounds=1, max_images=0)
    folder = Path(args.output)
    files = folder / "benchmark.md", folder / "benchmark.json"
    for file in files:
        refuse_others(file, "another --output")
    evaluate: Evaluate | None = None
    if args.max_images:

        def evaluate(model: str, format: str, path: Path, described: dict[str, Any]) -> dict[str, float]:
            return evaluate_run(model, format, path, described, args.max_images)

    threads = os.cpu_count() or 1
    console = Console(stderr=True)
    with console.status("") as status:
        rows = run_benchmark(
            list(dict.fromkeys([*args.models, *args.baselines])),
            list(dict.fromkeys(args.formats)),
            sizes,
            folder,
            args.rounds,
            threads,
            evaluate,
            status.update if console.is_terminal else console.print,  # it may take many minutes
            args.fixed_size,
        )
    about = f"{machine()}; {versions(_packages(args.formats))}"
    text = markdown(rows, threads, about)
    write_atomically(files[0], f"{text}\n<!-- {SIGNATURE} -->\n")
    content = {
        "author": SIGNATURE,
        "about": about,
        "threads": threads,
        "rows": [row.to_json() for row in rows],
    }
    write_atomically(files[1], json.dumps(content, indent=1) + "\n")
    return text


def _packages(formats: Sequence[str]) -> list[str]:
    packages = ["torch"]
    for format in formats:
        packages += get_format(split_int8(format)[0]).packages
    return list(dict.fromkeys(packages))


if __name__ == "__main__":
    cli()
