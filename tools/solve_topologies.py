"""Finds how many blocks each path of the paper's searched topologies keeps.

Figure 3 is a picture, but a task's published FLOPs are those of Stage 0, the head and n_p blocks on Path p, the
same four integers n_p for all its rows. This prints the integers whose greatest relative error is least:

    python tools/solve_topologies.py tests/models/published_flops.json

The counts say nothing about where the blocks sit; ``d2go_fbnetv5/zoo.py`` places them and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.zoo import create_model


@dataclass(frozen=True)
class Candidate:
    """Blocks kept on Path 0 to Path 3, and the relative error of each published row (0.01 is 1% too much)."""

    kept: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def worst(self) -> float:
        return max(abs(error) for error in self.errors)


def solve(task: str, rows: Sequence[dict[str, Any]], num_stages: int = 7) -> list[Candidate]:
    """Return all counts from 0 to ``num_stages`` per path, the best first.

    Args:
        task: "CLS", "SEG" or "DET".
        rows: each with ``family``, ``size`` (height, width) and, in millions of multiply-adds, ``BB``, or
            ``total`` where the backbone's part is not published.
    """
    fixed, blocks, published = [], [], []
    for row in rows:
        with torch.device("meta"):  # for the head and the padding; the blocks are costed on their own
            model = create_model(f"FBNetV5-{row['family']}-{task}", topology=Topology.named("linear"))
        costs = block_costs(row["family"], model.padded_size(tuple(row["size"])))
        head = 0 if "BB" in row else model_flops(model, tuple(row["size"])).parts["head"]
        fixed.append(sum(costs.stage0) + head)
        blocks.append(costs.blocks)
        published.append(1e6 * (row["BB"] if "BB" in row else row["total"]))
    counts = np.array(list(itertools.product(range(num_stages + 1), repeat=4)))
    errors = (np.array(fixed) + counts @ np.array(blocks).T) / np.array(published) - 1
    order = np.argsort(np.abs(errors).max(axis=1), kind="stable")
    return [Candidate(tuple(map(int, counts[i])), tuple(map(float, errors[i]))) for i in order]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the counts of blocks that fit, task by task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("published", help="JSON file of the published FLOPs by task")
    parser.add_argument("--stages", type=int, default=7, help="searchable stages (default: 7)")
    parser.add_argument("--show", type=int, default=12, help="candidates to print per task (default: 12)")
    args = parser.parse_args(argv)
    with open(args.published, encoding="utf-8") as file:
        published = json.load(file)
    for task in ("CLS", "SEG", "DET"):
        rows = published[task]["rows"]
        print(f"{task}: {', '.join(row['family'] for row in rows)} ({published[task]['source']})")
        for candidate in solve(task, rows, args.stages)[: args.show]:
            errors = "  ".join(f"{100 * error:+6.2f}%" for error in candidate.errors)
            print(f"  kept {candidate.kept}  worst {100 * candidate.worst:5.2f}%   rows {errors}")


if __name__ == "__main__":
    main()
