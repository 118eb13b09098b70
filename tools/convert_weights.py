"""Turn a mobile_cv checkpoint of FBNetV3 into weights that MODEL.WEIGHTS takes.

    python tools/convert_weights.py fbnetv3_a.pth supernet_a.pth --family A

Stage 0 and, for classification on Path 3, MBPool start from it; the searchable blocks have no counterpart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from d2go_fbnetv5.arch import list_families
from d2go_fbnetv5.arch.mobile_cv import load_mobile_cv_checkpoint
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.checkpoints import save_tensors
from d2go_fbnetv5.utils.errors import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    parser = ToolParser("convert_weights", __doc__)
    parser.add_argument("input", help="mobile_cv's checkpoint")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--family", required=True, help=f"one of {', '.join(list_families())}")
    args = parser.parse_args(argv)
    return run_tool("convert_weights", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    converted = load_mobile_cv_checkpoint(args.input, args.family)
    _write(Path(args.output), converted)
    print(f"{args.output}: {len(converted)} weights of family {args.family}")


def _write(path: Path, converted: dict[str, torch.Tensor]) -> None:
    """The weights by the names that a search (and its classification head) gives them."""
    weights = {
        f"supernet.{name}" if name.startswith("stage0.") else f"tasks.cls.{name}": value
        for name, value in converted.items()
    }
    save_tensors(path, {"model": weights})


def cli() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
