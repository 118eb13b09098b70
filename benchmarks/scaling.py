"""What a search says between its processes, beside what training says, in bytes and time; and a model of more GPUs.

    python benchmarks/scaling.py [--quick] [--gpus 16 64] [--bandwidth 12.5] [--latency 30] [--step 0.5]

Runs a search of digit scenes in one process and in two (gloo, on this machine). In two, each step has one all_gather of
the search: K = 4 numbers (ratio, loss, loss with price, label there or not) of T tasks and N samples; and DDP's
all-reduce of all gradients. Their time is taken in two ways: as it comes in a step, which is mostly the faster process
waiting for the slower one, and right after a barrier, which is what the communication itself takes.

The model on paper: to reduce the gradients a ring of P processes sends 2 (P - 1) / P of their bytes through each link,
and to gather, (P - 1) times one process' numbers; beside the bytes over --bandwidth (GB/s of a link) there are
2 (P - 1) or (P - 1) times --latency (microseconds). --step is the time of a step without communication in seconds. It
says what such a network would cost, not what was measured.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import CONFIGS, finish, parser
from torch import nn

from d2go_fbnetv5.arch import Supernet
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.hooks import AfterStepHook
from d2go_fbnetv5.engine.launch import launch
from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.engine.train import Run, prepare
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.ranks import is_distributed, rank, world_size

WARM_UP = 3
SEARCH, TRAINING = "the search's all_gather", "DDP's all-reduce of gradients"
NUMBERS = 4  # K: the numbers that a sample's all_gather has for each task


class Meter:
    """Bytes that this process contributes to collectives, and how long it is in them.

    Attributes:
        together: whether the processes wait for each other, unmeasured, before each collective.
        seconds: of the present step, by kind.
        sent: bytes of the present step, by kind.
    """

    def __init__(self) -> None:
        self.together = False
        self.seconds: dict[str, float] = defaultdict(float)
        self.sent: dict[str, int] = defaultdict(int)
        self._all_gather = dist.all_gather
        dist.all_gather = self.gather

    def gather(self, parts: list[torch.Tensor], values: torch.Tensor) -> None:
        with self._measured(SEARCH, values):
            self._all_gather(parts, values)

    # DDP refuses annotations that are strings, as those of this file are.
    def reduce(self, _, bucket):
        """A communication hook for DDP: its own average, but finished when it returns."""
        gradients = bucket.buffer()
        with self._measured(TRAINING, gradients):
            dist.all_reduce(gradients.div_(world_size()))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    def _measured(self, kind: str, values: torch.Tensor) -> _Measured:
        if self.together:
            dist.barrier()
        return _Measured(self, kind, values.numel() * values.element_size())


class _Measured:
    def __init__(self, meter: Meter, kind: str, sent: int) -> None:
        self.meter, self.kind, self.sent = meter, kind, sent

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.seconds[self.kind] += time.perf_counter() - self.start
        self.meter.sent[self.kind] += self.sent


class StepLog(Hook):
    """Milliseconds of each step, and what the meter says of it."""

    def __init__(self, meter: Meter, steps: int) -> None:
        self.meter, self.steps, self.rows = meter, steps, []

    def before_step(self, loop: TrainLoop) -> None:
        self.meter.seconds.clear()
        self.meter.sent.clear()
        self.meter.together = loop.iteration >= WARM_UP + self.steps
        if is_distributed():
            dist.barrier()

    def after_step(self, loop: TrainLoop) -> None:
        if loop.iteration >= WARM_UP:
            seconds = {kind: 1e3 * value for kind, value in self.meter.seconds.items()}
            row = {"together": self.meter.together, "step": 1e3 * loop.step_time, "ms": seconds}
            self.rows.append({**row, "bytes": dict(self.meter.sent)})


def worker(images: int, steps: int, folder: str, threads: int) -> None:
    """In each process: steps of a search, first as they come, then with processes that wait for each other."""
    torch.set_num_threads(threads)
    processes = world_size()
    opts = [
        "OUTPUT_DIR",
        f"{folder}/run{processes}",
        "SEED",
        "0",
        "SOLVER.IMS_PER_BATCH",
        str(images * processes),
    ]
    opts += ["SOLVER.BASE_LR", "0.01", "SEARCH.SAMPLES_PER_RANK", "2", "SEARCH.ARCH_WARMUP_ITERS", "0"]
    run = Run(prepare(load_cfg(CONFIGS / "search_digits_scratch.yaml", opts), processes))
    meter, model = Meter(), run.distributed_model()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.register_comm_hook(None, meter.reduce)
    log = StepLog(meter, steps)
    total = WARM_UP + (2 * steps if processes > 1 else steps)
    loop = TrainLoop(
        model, run.optimizer, run.data.train_batches(0), total, hooks=[AfterStepHook(), log], seed=run.seed
    )
    loop.run()
    weights = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    text = json.dumps({"rows": log.rows, "weights": weights, "tasks": len(run.model.tasks)})
    write_atomically(Path(folder, f"{processes}-{rank()}.json"), text)


def measured(folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The table, and what process 0 of two said of its model."""
    alone = json.loads(Path(folder, "1-0.json").read_text())
    two = [json.loads(Path(folder, f"2-{number}.json").read_text()) for number in range(2)]
    steps = [row["step"] for part in two for row in part["rows"] if not row["together"]]
    step = statistics.median(steps)
    rows = [
        {"what": "a step of one process", "ms": statistics.median(row["step"] for row in alone["rows"])},
        {"what": "a step of two processes", "ms": step},
    ]
    for kind in (SEARCH, TRAINING):
        for together, name in ((True, "processes synchronised"), (False, "as it comes, with waiting")):
            found = [row for part in two for row in part["rows"] if row["together"] == together]
            spent = statistics.median(row["ms"][kind] for row in found)
            sent = int(statistics.median(row["bytes"][kind] for row in found))
            share = f"{100 * spent / step:.3f}%"
            rows.append({"what": f"{kind}, {name}", "bytes": sent, "ms": spent, "of a step": share})
    return rows, two[0]


def paper_rows(
    weights: dict[str, int],
    tasks: int,
    samples: int,
    gpus: list[int],
    bandwidth: float,
    latency: float,
    step: float,
) -> list[dict[str, Any]]:
    """Seconds by the model that this file's head describes.

    Args:
        weights: numbers to reduce, by name.
        bandwidth: bytes a second through a link; latency: seconds a message; step: seconds.
    """
    rows = []
    own = NUMBERS * tasks * samples * 4
    for name, count in weights.items():
        for processes in gpus:
            others = processes - 1
            gather = others * (latency + own / bandwidth)
            reduce = 2 * others * (latency + 4 * count / processes / bandwidth)
            row: dict[str, Any] = {"weights": f"{name}, {count:,}", "GPUs": processes}
            row |= {"all_gather, bytes": own * others, "all_gather, ms": 1e3 * gather}
            row |= {"all-reduce, bytes": 8 * count * others // processes, "all-reduce, ms": 1e3 * reduce}
            row |= {"all_gather of a step": f"{100 * gather / (step + gather + reduce):.3f}%"}
            rows.append(row)
    return rows


def main() -> None:
    arguments = parser(__doc__, "output/benchmarks/scaling.json")
    arguments.add_argument("--images", type=int, default=16, help="a step and process (default 16)")
    arguments.add_argument(
        "--gpus", type=int, nargs="+", default=[16, 64], help="of the model (default 16 64)"
    )
    arguments.add_argument("--bandwidth", type=float, default=12.5, help="GB/s of a link (default 12.5)")
    arguments.add_argument("--latency", type=float, default=30.0, help="microseconds a message (default 30)")
    arguments.add_argument("--step", type=float, default=0.5, help="seconds of a step alone (default 0.5)")
    args = arguments.parse_args()
    steps = 4 if args.quick else 30
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            launch(worker, (args.images, steps, folder, args.threads), num_processes=processes)
        rows, two = measured(folder)
    weights = {
        "this search": two["weights"],
        "supernet of family A, 7 stages, without heads": sum(
            p.numel() for p in Supernet("A", 7).parameters()
        ),
    }
    # SEARCH.SAMPLES_PER_RANK's default.
    model = paper_rows(
        weights, two["tasks"], 4, args.gpus, 1e9 * args.bandwidth, 1e-6 * args.latency, args.step
    )
    assumed = {"bandwidth, GB/s": args.bandwidth, "latency, us": args.latency, "step, s": args.step}
    tables = {
        "Two processes on this machine": (rows, ["what", "bytes", "ms", "of a step"]),
        f"On paper: {', '.join(f'{key} {value:g}' for key, value in assumed.items())}": (
            model,
            list(model[0]),
        ),
    }
    finish(args.output, tables, assumed=assumed)


if __name__ == "__main__":
    main()
