"""Table 5 in small: random search, Algorithm 1 and Algorithm 4, with and without REINFORCE's importance weight.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py

On digit scenes with family N, every search runs search_digits_scratch.yaml for equally many steps; Algorithm 1 does so
once for each task, straight through as in the paper or by REINFORCE. Of every distribution the mode and four samples
are taken, of random search four topologies. Each is built as the task's ordinary model, which reads paths of its own,
and trained for the same few steps on configs/{cls,det,seg}. All begin with the weights of one supernet that was trained
on random topologies and belongs to none of the searches; --scratch begins with random weights, and needs many more
--steps. Beside it stands what the networks reach with that supernet's weights as they are, batch norm re-estimated.

Costs are seconds of processor time of the search's steps, per task. FLOPs are of the model's backbone at 96 x 96.
Finished searches and trainings lie in --folder and are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    MODELS,
    SEARCH_CONFIG,
    build_run,
    finish,
    finished,
    mean_and_spread,
    parser,
    run_folder,
    search_options,
    train_network,
)

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.recipes.search_judge import SearchJudge
from d2go_fbnetv5.search import derive_generator
from d2go_fbnetv5.search.base import REINFORCE, STRAIGHT_THROUGH
from d2go_fbnetv5.utils.files import write_atomically

SAMPLES = 4  # as in the paper
METHODS = {  # what the table calls it, SEARCH.ALGORITHM, further keys
    "multitask": ("Algorithm 4", "multitask", []),
    "unweighted": ("Algorithm 4, unweighted", "multitask", ["SEARCH.IMPORTANCE_WEIGHTED", False]),
    "single_task": ("Algorithm 1", "single_task", ["SEARCH.ESTIMATOR", STRAIGHT_THROUGH]),
    "reinforce": ("Algorithm 1, REINFORCE", "single_task", ["SEARCH.ESTIMATOR", REINFORCE]),
}


def run_searches(
    args: argparse.Namespace, seed: int, folder: Path
) -> dict[tuple[str, str], tuple[Path, float]]:
    """Each method's folder and cost per task, by (method, task)."""
    opts, found = search_options(seed, args.iterations, args.batch, 64), {}
    finished(
        SEARCH_CONFIG, folder / "random", [*opts, "SEARCH.TASKS", args.tasks, "SEARCH.ALGORITHM", "random"]
    )
    for method in args.methods:
        _, algorithm, more = METHODS[method]
        apart = algorithm == "single_task"
        for tasks in [[task] for task in args.tasks] if apart else [args.tasks]:
            own = folder / ("_".join((method, *tasks)) if apart else method)
            keys = [*opts, *more, "SEARCH.TASKS", tasks, "SEARCH.ALGORITHM", algorithm]
            cpu = finished(SEARCH_CONFIG, own, keys)["cpu"]
            found.update({(method, task): (own, cpu / len(tasks)) for task in tasks})
            print(f"seed {seed}, {method} {tasks}: {cpu:.0f} s", flush=True)
    return found


def draw(probabilities: Sequence[Sequence[float]], *key: Any) -> list[Topology]:
    """Samples of a distribution, S x P, by a seed that ``key`` gives."""
    probs = torch.tensor(probabilities)
    generator = derive_generator("ablation", *key)
    return [Topology(torch.rand(probs.shape, generator=generator) < probs) for _ in range(SAMPLES)]


def _digits(topology: Topology) -> str:
    return "".join(str(int(kept)) for row in topology.mask for kept in row)


class Bench:
    """What a network of a task is worth, under one seed."""

    def __init__(self, args: argparse.Namespace, seed: int, folder: Path) -> None:
        self.args, self.seed, self.folder = args, seed, folder
        opts = [
            *search_options(seed, args.iterations, args.batch, 64),
            "SEARCH.TASKS",
            args.tasks,
            "SEARCH.ALGORITHM",
            "random",
        ]
        run = build_run(SEARCH_CONFIG, folder / "random", opts)
        self.costs = block_costs("N", run.recipe.size)
        batches = list(run.data.eval_batches(min(args.images)))
        self.judge = SearchJudge(
            run.model, self.costs, run.data.info, run.data.statistics_batches(8), batches
        )

    def __call__(self, task: str, topology: Topology) -> dict[str, float]:
        """FLOPs, metric with the random supernet's weights, and metric after training."""
        paths = MODELS[task][2]
        network = topology.prune(paths)
        folder = self.folder / "networks" / f"{task}_{_digits(network)}"
        # The search's head reads other paths, so that one network of the model may stand for several results.
        file = self.folder / "networks" / f"{task}_{_digits(topology)}.json"
        if not file.is_file():
            metric = self.judge.search.tasks[task].primary_metric
            weights = None if self.args.scratch else self.folder / "random" / "model_final.pth"
            index = self.args.tasks.index(task)
            steps = self.args.steps[index % len(self.args.steps)]
            images = self.args.images[index % len(self.args.images)]
            result = {
                "MFLOPs": self.costs.network(network, paths) / 1e6,
                "supernet": self.judge.metrics(task, topology)[metric],
                "trained": train_network(task, network, folder, steps, images, weights, self.seed),
            }
            (folder / "model_final.pth").unlink(missing_ok=True)
            write_atomically(file, json.dumps(result))
        return json.loads(file.read_text())


def run_seed(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """One row for every task and method's mode, mean and best."""
    folder = args.folder / f"seed{seed}"
    searches, bench = run_searches(args, seed, folder), Bench(args, seed, folder)
    rows = []
    for task in args.tasks:
        half = [[0.5] * 4] * bench.judge.search.supernet.num_stages
        rows += summarise(task, "random", None, [bench(task, t) for t in draw(half, seed, task)], 0.0)
        for method in args.methods:
            own, cpu = searches[method, task]
            entry = load_topologies(own / "topologies.json").tasks[task]
            samples = [bench(task, t) for t in draw(entry.probabilities, seed, task, method)]
            rows += summarise(task, METHODS[method][0], bench(task, entry.topology), samples, cpu)
        print(f"seed {seed}, {task}: done", flush=True)
    return [{"seed": seed, **row} for row in rows]


def summarise(
    task: str, method: str, mode: dict[str, float] | None, samples: list[dict[str, float]], cpu: float
) -> list[dict[str, Any]]:
    keys = ("MFLOPs", "supernet", "trained")
    found = {} if mode is None else {"mode": mode}
    found[f"mean of {SAMPLES}"] = {key: statistics.fmean(s[key] for s in samples) for key in keys}
    found[f"best of {SAMPLES}"] = max(samples, key=lambda s: s["trained"])
    return [
        {"task": task, "method": method, "topology": which, **row, "cpu": cpu} for which, row in found.items()
    ]


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/ablation.json")
    parse.add_argument("--folder", type=Path, help="of finished runs (default output/benchmarks/ablation)")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parse.add_argument("--tasks", nargs="+", default=["cls", "det", "seg"])
    parse.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parse.add_argument("--iterations", type=int, default=1400, help="of each search")
    parse.add_argument("--batch", type=int, default=24, help="images of a search's step")
    parse.add_argument("--steps", type=int, nargs="+", default=[1600, 100, 150], help="of training, per task")
    parse.add_argument(
        "--images", type=int, nargs="+", default=[8192, 512, 512], help="of the validation set, per task"
    )
    parse.add_argument("--scratch", action="store_true", help="train from random weights, not a supernet's")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.seeds, args.tasks, args.methods = [0], ["cls"], ["multitask", "single_task"]
        args.iterations, args.batch, args.steps, args.images = 12, 8, [2], [16]
    args.folder = run_folder(args, "ablation", ["tasks", "iterations", "batch", "steps", "images", "scratch"])

    rows = [row for seed in args.seeds for row in run_seed(args, seed)]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"], row["topology"]), []).append(row)
    table = [
        {
            "task": task,
            "search": method,
            "topology": which,
            "MFLOPs": mean_and_spread([row["MFLOPs"] for row in found]),
            "with supernet": mean_and_spread([row["supernet"] for row in found]),
            "trained": mean_and_spread([row["trained"] for row in found]),
            "search, CPU s": round(statistics.fmean(row["cpu"] for row in found)),
        }
        for (task, method, which), found in groups.items()
    ]
    title = f"Searched and random topologies, mean ± standard deviation over seeds {args.seeds}"
    options = {key: str(value) for key, value in vars(args).items()}
    finish(args.output, {title: (table, list(table[0]))}, options=options, runs=rows)


if __name__ == "__main__":
    main()
