"""What a search found against all 2^8 topologies of two stages, on digit scenes with family N.

    OMP_NUM_THREADS=1 python benchmarks/exhaustive.py

One supernet is searched by Algorithm 4 with search_digits_scratch.yaml, its stages set to two. With its weights and
batch-norm statistics re-estimated for each network, every topology is judged for every task: by the loss on validation
images plus the price of Appendix E, which is what the search minimises, and by the task's metric. Topologies from which
the head reaches the same blocks are the same network and have the same loss, at different prices. A sample of the
topologies is trained shortly as the task's ordinary model, for the rank correlation between the metric with the
supernet's weights and after training. What is finished lies in --folder and is not done again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    SEARCH_CONFIG,
    build_run,
    finish,
    finished,
    parser,
    rank_correlation,
    run_folder,
    search_options,
    train_network,
)
from fvcore.common.config import CfgNode
from torch import nn

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs
from d2go_fbnetv5.engine.evaluation import Batch, evaluate, precise_batch_norm
from d2go_fbnetv5.engine.recipes.search_judge import TaskNetwork
from d2go_fbnetv5.engine.train import Run
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.seeding import seed_all

STAGES = 2


def all_topologies() -> list[Topology]:
    count = STAGES * 4
    return [
        Topology([[bits >> (4 * s + p) & 1 for p in range(4)] for s in range(STAGES)])
        for bits in range(2**count)
    ]


def distinct_networks(in_features: Sequence[str]) -> list[Topology]:
    """The topologies that differ in what a head that reads ``in_features`` uses, pruned for it."""
    return list({t.prune(in_features): None for t in all_topologies()})


def price(cfg: CfgNode, costs: BlockCosts, topology: Topology) -> float:
    """Of SEARCH.COST, as Appendix E adds it to a loss."""
    return cfg.WEIGHT * max(0.0, costs.relative(topology) - cfg.TARGET)


def judge(
    run: Run, task: str, topology: Topology, statistics: list[Batch], batches: list[Batch]
) -> dict[str, float]:
    """Loss and primary metric of one network on ``batches``, its batch norm re-estimated on ``statistics``."""
    network = TaskNetwork(run.model, task, topology)
    head = network.task
    with precise_batch_norm(network, statistics):
        metric = evaluate(network, batches, head.evaluator(run.data.info))[head.primary_metric]
        network.eval()
        head.train()  # so that it says its loss
        for module in head.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)):
                module.eval()
        losses, count = 0.0, 0
        with torch.no_grad():
            for i, batch in enumerate(batches):
                seed_all(0, iteration=i)  # of the detector's sampled regions
                found = network(batch)
                losses += len(batch) * float(sum(found.values())) if found else 0.0
                count += len(batch) if found else 0
        head.eval()
    return {"loss": losses / count, "metric": metric}


def judge_all(run: Run, folder: Path, images: int) -> dict[str, dict[str, dict[str, float]]]:
    """Loss and metric of every distinct network of every task, by task and the network's mask; kept in a file."""
    file = folder / "networks.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    statistics, batches = run.data.statistics_batches(8), list(run.data.eval_batches(images))
    for name, task in run.model.tasks.items():
        networks = found.setdefault(name, {})
        for topology in distinct_networks(task.in_features):
            if repr(topology) not in networks:
                networks[repr(topology)] = judge(run, name, topology, statistics, batches)
                write_atomically(file, json.dumps(found))
        print(f"{name}: {len(networks)} networks judged", flush=True)
    return found


def place(run: Run, name: str, networks: dict[str, dict[str, float]], costs: BlockCosts) -> dict[str, Any]:
    """Where the searched topology stands among all, by the objective and by the metric."""
    task, cfg = run.model.tasks[name], run.cfg.SEARCH.COST
    everything, found = all_topologies(), run.model.most_likely()[name]

    def objective(topology: Topology) -> float:
        return networks[repr(topology.prune(task.in_features))]["loss"] + price(cfg, costs, topology)

    def metric(topology: Topology) -> float:
        value = networks[repr(topology.prune(task.in_features))]["metric"]
        return value if task.higher_is_better else -value

    objectives = [objective(t) for t in everything]
    better = sum(value < objective(found) for value in objectives)
    better_by_metric = sum(metric(t) > metric(found) for t in everything)
    distinct = {
        repr(t.prune(task.in_features)): objective(t) for t in sorted(everything, key=objective, reverse=True)
    }
    return {
        "task": name,
        "found": repr(found)[9:-1],
        "used by the head": repr(found.prune(task.in_features))[9:-1],
        "objective": objective(found),
        "best": min(objectives),
        "median": sorted(objectives)[len(objectives) // 2],
        "strictly better": f"{better} of {len(everything)}",
        "best %": 100 * (better + 1) / len(everything),
        "better networks": f"{sum(v < objective(found) for v in distinct.values())} of {len(distinct)}",
        "metric": networks[repr(found.prune(task.in_features))]["metric"],
        "best % by metric": 100 * (better_by_metric + 1) / len(everything),
    }


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/exhaustive.json")
    parse.add_argument("--folder", type=Path, help="of finished runs (default output/benchmarks/exhaustive)")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--iterations", type=int, default=1600, help="of the search")
    parse.add_argument("--batch", type=int, default=32, help="images of a search's step")
    parse.add_argument("--images", type=int, default=1024, help="of the validation set")
    parse.add_argument("--sample", type=int, default=6, help="topologies that are trained for each task")
    parse.add_argument("--steps", type=int, default=150, help="of their training")
    parse.add_argument("--tasks", nargs="+", default=["cls", "det", "seg"])
    parse.add_argument("--scratch", action="store_true", help="train from random weights, not the supernet's")
    parse.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of the search to override")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.iterations, args.batch, args.tasks = 20, 8, ["cls"]
        args.images, args.sample, args.steps = 16, 2, 2
    args.folder = run_folder(
        args, "exhaustive", ["seed", "tasks", "iterations", "batch", "images", "steps", "opts"]
    )

    opts = search_options(args.seed, args.iterations, args.batch, args.images)
    opts += ["MODEL.FBNETV5.NUM_STAGES", STAGES, "SEARCH.TASKS", args.tasks, *args.opts]
    search_folder = args.folder / "search"
    cpu = finished(SEARCH_CONFIG, search_folder, opts)["cpu"]
    run = build_run(SEARCH_CONFIG, search_folder, opts)
    networks = judge_all(run, args.folder, args.images)
    costs = block_costs("N", run.recipe.size)
    rows = []
    for name in args.tasks:
        row = place(run, name, networks[name], costs)
        sample = random.Random(args.seed).sample(all_topologies(), args.sample)
        weights = None if args.scratch else search_folder / "model_final.pth"
        kind = "scratch" if args.scratch else "supernet"
        trained = [
            train_network(
                name,
                topology,
                args.folder / f"{name}_{kind}_{i}",
                args.steps,
                args.images,
                weights,
                args.seed,
            )
            for i, topology in enumerate(sample)
        ]
        head = run.model.tasks[name]
        judged = [networks[name][repr(t.prune(head.in_features))]["metric"] for t in sample]
        row["rank correlation"] = rank_correlation(judged, trained)
        row["sample"] = [
            {"topology": repr(n), "supernet": j, "trained": t}
            for n, j, t in zip(sample, judged, trained, strict=True)
        ]
        rows.append(row)
        print(f"{name}: {row}", flush=True)
    columns = [key for key in rows[0] if key not in ("sample",)]
    options = {key: str(value) for key, value in vars(args).items()}
    finish(
        args.output, {"The searched topology among all 256": (rows, columns)}, options=options, search_cpu=cpu
    )


if __name__ == "__main__":
    main()
