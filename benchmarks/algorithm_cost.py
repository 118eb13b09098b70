"""Table 1, measured: passes through the supernet, time per step and peak memory of each search algorithm for T tasks.

    OMP_NUM_THREADS=1 python benchmarks/algorithm_cost.py

Heads are a linear layer each, so that the supernet dominates. Passes are counted by hooks on the supernet's first
layers. Steps take turns; the time is the median of their processor time. Memory is what a process of its own adds at
its peak. Algorithms 1 and 2 have both estimators: straight-through runs every block and needs gradients of the
masks, which costs more per pass; REINFORCE costs per pass what Algorithm 4 does. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import finish, parser, take_turns
from torch import nn

from d2go_fbnetv5.arch import Supernet, block_costs
from d2go_fbnetv5.search import ALGORITHMS, CostRegularizer, Search

_STAGES = 4
# Label: algorithm, its options, whether it is for one task only.
_ALGORITHMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "1, straight-through": ("single_task", {}, True),
    "1, REINFORCE": ("single_task", {"estimator": "reinforce"}, True),
    "2, straight-through": ("per_task_forward", {}, False),
    "2, REINFORCE": ("per_task_forward", {"estimator": "reinforce"}, False),
    "3": ("shared_forward", {}, False),
    "4": ("multitask", {}, False),
}


class Probe(nn.Module):
    """A head that costs next to nothing: classes from a path's mean feature."""

    def __init__(self, name: str, path: str, channels: int) -> None:
        super().__init__()
        self.name, self.in_features = name, (path,)
        self.linear = nn.Linear(channels, 10)

    def forward(self, features: dict, batch: list[dict]) -> dict:
        logits = self.linear(features[self.in_features[0]].mean((2, 3)))
        labels = torch.tensor([sample["class_label"] for sample in batch])
        return {"loss": F.cross_entropy(logits, labels.to(logits.device, non_blocking=True))}


class Stepper:
    """One algorithm on one supernet: ``step`` is an iteration of training, data aside."""

    def __init__(self, label: str, num_tasks: int, args: argparse.Namespace) -> None:
        name, options, _ = _ALGORITHMS[label]
        torch.manual_seed(0)
        supernet = Supernet(args.family, _STAGES).to(memory_format=torch.channels_last)
        paths = [f"path{3 - t % 2}" for t in range(num_tasks)]
        tasks = [Probe(f"t{t}", path, supernet.channels[path]) for t, path in enumerate(paths)]
        costs = block_costs(args.family, (args.size, args.size)).matrix(_STAGES)
        self.search: Search = ALGORITHMS[name](
            supernet, tasks, samples_per_rank=1, cost=CostRegularizer(costs), **options
        )
        self.optimizer = torch.optim.SGD(self.search.param_groups(0.01), lr=0.01, momentum=0.9)
        self.batch = [
            {"image": torch.randn(3, args.size, args.size), "class_label": i % 10} for i in range(args.batch)
        ]

    def step(self) -> None:
        losses = self.search(self.batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        self.search.after_step()

    def passes(self) -> tuple[int, int]:
        """Forward and backward passes through the supernet in one step."""
        counts = [0, 0]

        def after(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            counts[0] += 1
            output.register_hook(lambda _: counts.__setitem__(1, counts[1] + 1))

        handle = self.search.supernet.stage0["path0"].register_forward_hook(after)
        self.step()
        handle.remove()
        return counts[0], counts[1]


def _memory(key: str) -> float:
    """MB of this process: VmHWM is the peak, VmRSS the present."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure_memory(label: str, num_tasks: int, args: argparse.Namespace) -> float:
    """MB that two steps add to a process which has the supernet's packages loaded."""
    before = _memory("VmRSS")
    stepper = Stepper(label, num_tasks, args)
    for _ in range(2):
        stepper.step()
    return _memory("VmHWM") - before


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/algorithm_cost.json")
    parse.add_argument("--family", default="N")
    parse.add_argument("--size", type=int, default=96, help="of the images in pixels")
    parse.add_argument("--batch", type=int, default=16)
    parse.add_argument("--rounds", type=int, default=21)
    parse.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 3, 6])
    parse.add_argument("--memory-of", nargs=2, metavar=("ALGORITHM", "T"), help=argparse.SUPPRESS)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of[0], int(args.memory_of[1]), args)))
        return
    if args.quick:
        args.rounds, args.batch, args.tasks = 3, 4, [1, 3]

    cases = [
        (label, t)
        for label, (_, _, single) in _ALGORITHMS.items()
        for t in args.tasks
        if t == 1 or not single
    ]
    steppers = {case: Stepper(*case, args) for case in cases}
    passes = {case: stepper.passes() for case, stepper in steppers.items()}  # also warms up
    seconds = take_turns({case: stepper.step for case, stepper in steppers.items()}, args.rounds)
    rows = []
    for case in cases:
        label, t = case
        reference = statistics.median(seconds["4", t])
        rows.append(
            {
                "algorithm": label,
                "T": t,
                "forward": passes[case][0],
                "backward": passes[case][1],
                "ms per step": 1000 * statistics.median(seconds[case]),
                "of Algorithm 4": statistics.median(seconds[case]) / reference,
                "peak MB": round(_memory_of(case, args)),
            }
        )
    few, many = min(args.tasks), max(args.tasks)
    growth = statistics.median(b / a for a, b in zip(seconds["4", few], seconds["4", many], strict=True))
    print(
        f"Algorithm 4, T = {many} against T = {few}: {growth:.3f} of the time (median of the rounds' ratios)"
    )
    options = {key: str(value) for key, value in vars(args).items()}
    columns = ["algorithm", "T", "forward", "backward", "ms per step", "of Algorithm 4", "peak MB"]
    finish(
        args.output, {"Cost of a search step": (rows, columns)}, options=options, growth_of_algorithm_4=growth
    )


def _memory_of(case: tuple[str, int], args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", case[0], str(case[1]), "--threads", str(args.threads)]
    command += ["--family", args.family, "--size", str(args.size), "--batch", str(args.batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
