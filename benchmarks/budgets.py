"""What the networks of a front are worth once they are trained, beside random ones that cost the same.

    d2go_fbnetv5.front output/demo
    OMP_NUM_THREADS=1 python benchmarks/budgets.py output/demo
    OMP_NUM_THREADS=1 python benchmarks/budgets.py SEARCH --scenes fashion --supernet 8000+8000

Of each task's front the network is taken that a budget gives, for --budgets budgets: evenly from the cheapest network
of the front, which no random one can rival, to the dearest. Beside each are --rivals others, each as likely as any, of
all different networks whose FLOPs are within --within of its own; of seven stages, which have too many to be listed,
of 20000 that are drawn. All are trained by their task's ordinary recipe from the search's supernet, over --seeds, and
judged on --images validation images. The metric should rise with the budget, and each network from the front be better
than its rivals' mean.

Figures are kept in benchmarks/results as they come, what is under way in --folder: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import finish, mean_and_spread, parser
from exhaustive import distinct_networks
from networks import SCENES, Trainer, add_training_options, pretrained, supernet_steps

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs
from d2go_fbnetv5.arch.topology_file import TopologyFile, load_topologies
from d2go_fbnetv5.utils.seeding import derive_generator

MOST_STAGES, DRAWN = 4, 20_000  # of which all networks are listed; how many are drawn where there are more


def picked(front: TopologyFile, task: str, costs: BlockCosts, count: int) -> list[Topology]:
    """The networks of ``count`` budgets, from that after the front's cheapest to its dearest, each once."""
    outputs = front.tasks[task].outputs
    found = [costs.network(entry.topology, outputs) for entry in front.fronts[task]]
    least, most = min(found), max(found)
    budgets = [least + (most - least) * part / count for part in range(1, count + 1)]
    networks = [front.task(task, {costs.metric: budget}).topology.prune(outputs) for budget in budgets]
    return list(dict.fromkeys(networks))


def candidates(outputs: Sequence[str], stages: int) -> list[Topology]:
    """All networks that differ for a head that reads ``outputs``, or where those are too many, some of any cost."""
    if stages <= MOST_STAGES:
        return distinct_networks(outputs, stages)
    generator = derive_generator("budgets", *outputs)
    # Blocks that are kept with one probability for all would all cost about the same.
    probs = torch.rand(DRAWN, generator=generator).tolist()
    drawn = (Topology.random(stages, prob=prob, generator=generator).prune(outputs) for prob in probs)
    return list(dict.fromkeys(drawn))


def rivals(
    network: Topology,
    everything: Sequence[Topology],
    cost: Callable[[Topology], float],
    within: float,
    count: int,
    *key: Any,
) -> list[Topology]:
    """``count`` networks, or all that there are, whose cost is within a share of a network's; itself not among them."""
    own = cost(network)
    alike = [other for other in everything if other != network and abs(cost(other) / own - 1) <= within]
    order = torch.randperm(len(alike), generator=derive_generator("budgets", *key)).tolist()
    return [alike[i] for i in order[:count]]


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/budgets.json")
    parse.add_argument("search", type=Path, help="its folder, with a front")
    parse.add_argument("--scenes", choices=list(SCENES), default="digits", help="of the search")
    parse.add_argument("--supernet", type=supernet_steps, default="8000", help="steps of the search's")
    add_training_options(parse)
    parse.add_argument("--tasks", nargs="+", default=["det", "seg"])
    parse.add_argument("--budgets", type=int, default=3)
    parse.add_argument("--rivals", type=int, default=3, help="random networks beside each")
    parse.add_argument("--within", type=float, default=0.05, help="share by which their FLOPs may differ")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.folder, args.results = args.folder / "quick", args.folder / "quick" / "results"
        args.tasks, args.budgets, args.rivals, args.steps, args.images = args.tasks[:1], 1, 1, [2], 16

    rows = compare(args, load_topologies(args.search / "front" / "front.json"))
    options = {
        key: str(value) for key, value in vars(args).items() if key not in ("search", "folder", "results")
    }
    title = f"Networks of the front by their FLOPs, and random ones beside them, over seeds {args.seeds}"
    finish(args.output, {title: (rows, list(rows[0]))}, options=options)


def compare(args: argparse.Namespace, front: TopologyFile) -> list[dict[str, Any]]:
    """Train what is picked and its rivals; a row for each that is picked."""
    scenes, costs = SCENES[args.scenes], block_costs(front.family, front.size)
    start = args.supernet
    trainer = Trainer.of(args, scenes, {start: pretrained(scenes, start, args.folder)}, args.tasks)
    rows = []
    for task in args.tasks:
        outputs = front.tasks[task].outputs
        cost = partial(costs.network, outputs=outputs)
        everything = candidates(outputs, front.num_stages)
        for network in picked(front, task, costs, args.budgets):
            others = rivals(network, everything, cost, args.within, args.rivals, task, network.text("-"))
            own = [trainer(task, network, start, seed) for seed in args.seeds]
            theirs = [[trainer(task, other, start, seed) for other in others] for seed in args.seeds]
            rows.append(
                {
                    "task": task,
                    "network": network.text(", "),
                    "MFLOPs": cost(network) / 1e6,
                    "metric": mean_and_spread(own),
                    "rivals": len(others),
                    "their MFLOPs": statistics.fmean(map(cost, others)) / 1e6,
                    "their mean": mean_and_spread([statistics.fmean(metrics) for metrics in theirs]),
                    "their best": mean_and_spread([max(metrics) for metrics in theirs]),
                }
            )
    return rows


if __name__ == "__main__":
    main()
