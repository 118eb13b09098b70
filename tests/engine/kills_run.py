"""A tool whose runs also leave every process' average of weights: a script, so that it can be killed."""

import importlib
import os
import sys
from pathlib import Path

import torch
from torch import nn

from d2go_fbnetv5.engine.train import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "pseudo_labels"))  # its planted teachers

_conclude = Run.conclude


def _conclude_and_tell(run: Run) -> dict[str, float]:
    metrics = _conclude(run)
    kept = run.ema if isinstance(run.ema, nn.Module) else run.model
    torch.save(kept.state_dict(), run.folder / f"of_rank{os.environ.get('RANK', 0)}.pth")
    return metrics


Run.conclude = _conclude_and_tell


def main(tool: str, argv: list[str]) -> int:
    return importlib.import_module(f"d2go_fbnetv5.tools.{tool}").main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
