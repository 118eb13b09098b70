"""Table 5 in small: searched, random and hand-made topologies, all trained by their tasks' ordinary configurations.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py
    OMP_NUM_THREADS=1 python benchmarks/ablation.py --scenes digits

On scenes of clothes with family N and seven stages, in which the topologies of Appendix C fit: linear, FPN, PANet and
BiFPN (a U-Net is the FPN's network once it is pruned for heads on Path 1). On scenes of digits the supernet is the one
that ships, with four stages, which have room for the linear topology and the FPN. All searches are on one pretrained
supernet, whose weights rest, and take equally many steps on equally many topologies; Algorithm 1 does so once for each
task, straight through as in the paper. Of every search the mode is taken, what it found among the 32 likeliest networks
(or what --take says), and --samples of its distribution; of random search --randoms topologies, each block kept with
probability 0.5. Prices begin at --target of the full supernet's cost: the searches are to be compared with hand-made
topologies, the dearest of which has a fifth of it.

Costs are seconds of processor time of the search's steps, per task. FLOPs are those of what the search's head reads.
"cost as much" counts, of the rivals that cost as much as the topology or more, how many are better.
Figures are kept in benchmarks/results as they come, what is under way in --folder: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, build_run, by_seed, finish, finished, mean_and_spread, parser
from networks import (
    SCENES,
    Scenes,
    Trainer,
    add_training_options,
    judge_with,
    pretrained,
    supernet_steps,
)

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.search.base import REINFORCE, STRAIGHT_THROUGH
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.seeding import derive_generator

HAND_MADE = {"linear": "linear", "fpn": "FPN, U-Net", "panet": "PANet", "bifpn": "BiFPN"}
METHODS = {  # what the table calls it, SEARCH.ALGORITHM, further keys
    "multitask": ("Algorithm 4", "multitask", []),
    "unweighted": ("Algorithm 4, unweighted", "multitask", ["SEARCH.IMPORTANCE_WEIGHTED", False]),
    "single_task": ("Algorithm 1", "single_task", ["SEARCH.ESTIMATOR", STRAIGHT_THROUGH]),
    "reinforce": ("Algorithm 1, REINFORCE", "single_task", ["SEARCH.ESTIMATOR", REINFORCE]),
}
TAKEN = ["mode", "found"]
TOPOLOGIES_A_STEP, IMAGES_A_STEP = 16, 32


def search(
    args: argparse.Namespace, scenes: Scenes, weights: Path, method: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Each task's probabilities, what was found and the seconds of processor time; kept in a file."""
    file = (
        args.results / f"searched_{scenes.name}_{method}_{args.supernet}_{args.iterations}_{args.target}.json"
    )
    found = json.loads(file.read_text()) if file.is_file() else {}
    _, algorithm, more = METHODS[method]
    apart = algorithm == "single_task"
    for tasks in [[task] for task in args.tasks] if apart else [args.tasks]:
        if all(task in found.get(str(seed), {}) for task in tasks):
            continue
        own = args.folder / "_".join((file.stem, *tasks, str(seed)))
        opts = ["MODEL.WEIGHTS", weights, "SEED", seed, "SOLVER.MAX_ITER", args.iterations]
        opts += ["SOLVER.IMS_PER_BATCH", IMAGES_A_STEP, "SEARCH.SAMPLES_PER_RANK", TOPOLOGIES_A_STEP]
        opts += ["SEARCH.TASKS", tasks, "SEARCH.ALGORITHM", algorithm, "SEARCH.COST.TARGET", args.target]
        opts += ["SEARCH.EVAL.RANDOM_TOPOLOGIES", 0, "SEARCH.EVAL.MAX_IMAGES", min(args.images, 256), *more]
        cpu = finished(scenes.search, own, opts)["cpu"] / len(tasks)
        for task, entry in load_topologies(own / "topologies.json").tasks.items():
            found.setdefault(str(seed), {})[task] = {
                "probabilities": entry.probabilities,
                "found": entry.topology.to_dict(),
                "cpu": cpu,
            }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(found) + "\n")
        print(f"seed {seed}, {method} {tasks}: {cpu * len(tasks):.0f} s", flush=True)
    return {task: found[str(seed)][task] for task in args.tasks}


def draw(probabilities: Sequence[Sequence[float]], count: int, *key: Any) -> list[Topology]:
    """Samples of a distribution, S x P, by a seed that ``key`` gives."""
    probs = torch.tensor(probabilities)
    generator = derive_generator("ablation", *key)
    return [Topology(torch.rand(probs.shape, generator=generator) < probs) for _ in range(count)]


def rivals(
    args: argparse.Namespace, scenes: Scenes, weights: Path
) -> list[tuple[int, str, str, str, Topology, float]]:
    """Each seed's topologies: seed, task, where it comes from, which one it is, itself, seconds of its search."""
    found = []
    for seed in args.seeds:
        searched = {method: search(args, scenes, weights, method, seed) for method in args.methods}
        for task in args.tasks:
            half = [[0.5] * 4] * scenes.num_stages
            found += [(seed, task, "random", "mean", t, 0.0) for t in draw(half, args.randoms, seed, task)]
            for name, topology in Topology.hand_made(scenes.num_stages).items():
                found.append((seed, task, "hand-made", HAND_MADE[name], topology, 0.0))
            for method, result in searched.items():
                title, cpu = METHODS[method][0], result[task]["cpu"]
                probs = result[task]["probabilities"]
                taken = {
                    "mode": Topology(torch.tensor(probs) > 0.5),
                    "found": Topology.from_dict(result[task]["found"]),
                }
                found += [(seed, task, title, which, taken[which], cpu) for which in args.take]
                samples = draw(probs, args.samples, seed, task, method)
                found += [(seed, task, title, "samples' mean", t, cpu) for t in samples]
    return found


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/ablation.json")
    parse.add_argument("--scenes", choices=list(SCENES), default="fashion")
    add_training_options(parse)
    parse.add_argument("--supernet", type=supernet_steps, default="8000", help="its steps")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parse.add_argument("--tasks", nargs="+", default=["det", "seg"])
    parse.add_argument("--methods", nargs="+", choices=list(METHODS), default=["multitask", "single_task"])
    parse.add_argument("--iterations", type=int, help="of each search (default: its recipe's)")
    parse.add_argument("--target", type=float, default=0.2, help="relative cost that is free")
    parse.add_argument("--randoms", type=int, default=4, help="random topologies of each seed and task")
    parse.add_argument("--take", nargs="+", choices=TAKEN, default=TAKEN, help="of each search")
    parse.add_argument("--samples", type=int, default=2, help="of each search's distribution")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.folder, args.results = args.folder / "quick", args.folder / "quick" / "results"
        args.scenes, args.supernet, args.seeds, args.tasks = "digits", "4", [0], ["det"]
        args.iterations, args.randoms, args.samples, args.steps, args.images = 2, 1, 1, [2], 16

    scenes = SCENES[args.scenes]
    args.iterations = args.iterations or load_cfg(CONFIGS / scenes.search).SOLVER.MAX_ITER
    weights = pretrained(scenes, args.supernet, args.folder)
    everyone = rivals(args, scenes, weights)
    run = build_run(scenes.search, args.folder / "judge", ["MODEL.WEIGHTS", weights])
    costs, in_features = block_costs("N", run.recipe.size), run.model.in_features
    networks = {
        task: list(
            dict.fromkeys(t.prune(in_features[task]) for _, name, _, _, t, _ in everyone if name == task)
        )
        for task in args.tasks
    }
    start = args.supernet
    judged = judge_with(scenes, weights, start, networks, args.images, args.folder / "judge", args.results)
    trainer = Trainer.of(args, scenes, {start: weights}, args.tasks)

    rows = []
    for seed, task, origin, which, topology, cpu in everyone:
        network = topology.prune(in_features[task])
        rows.append(
            {
                "seed": seed,
                "task": task,
                "origin": origin,
                "topology": which,
                "network": network.text("-"),
                "MFLOPs": costs.network(network, in_features[task]) / 1e6,
                "supernet": judged[task][repr(network)]["metric"],
                "trained": trainer(task, network, start, seed),
                "cpu": cpu,
            }
        )
    options = {key: str(value) for key, value in vars(args).items()}
    table = summarise(rows)
    title = f"Searched, random and hand-made topologies, mean ± standard deviation over seeds {args.seeds}"
    finish(args.output, {title: (table, list(table[0]))}, options=options, runs=rows)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each task, origin and topology: the mean of each seed's, and their spread over the seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["origin"], row["topology"]), []).append(row)
    table = []
    for (task, origin, which), own in groups.items():
        trained, price = by_seed(own, "trained"), by_seed(own, "MFLOPs")
        better = []
        for seed, mine in trained.items():
            others = [
                row
                for row in rows
                if (row["seed"], row["task"]) == (seed, task)
                and (row["origin"], row["topology"]) != (origin, which)
                and row["origin"] in ("random", "hand-made")
                and row["MFLOPs"] >= price[seed]
            ]
            better.append(f"{sum(row['trained'] > mine for row in others)} of {len(others)}")
        table.append(
            {
                "task": task,
                "origin": origin,
                "topology": which,
                "MFLOPs": mean_and_spread(price.values()),
                "with supernet": mean_and_spread(by_seed(own, "supernet").values()),
                "trained": mean_and_spread(trained.values()),
                "cost as much and are better, by seed": ", ".join(better),
                "search, CPU s": round(statistics.fmean(by_seed(own, "cpu").values())),
            }
        )
    return table


if __name__ == "__main__":
    main()
