"""How much of the true front a front of some evaluations has, where every network has been judged.

    OMP_NUM_THREADS=1 python benchmarks/exhaustive.py output/demo --networks 0
    OMP_NUM_THREADS=1 python benchmarks/front.py output/demo

exhaustive.py has judged all networks of four stages with the supernet's weights. On these losses, looked up, the front
of each search is found as `python -m d2go_fbnetv5.front` finds it, --seeds times with other seeds, and as often as many
random networks are drawn. Of each front the hypervolume is told, by the true front's: the area of loss and FLOPs that
it dominates, up to the greatest loss and the greatest cost of the true front's own networks, so that its ends count no
more than what lies between. (Measured up to the worst network of all, any front has nearly everything.)
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, parser
from exhaustive import distinct_networks

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs
from d2go_fbnetv5.front.nsga import dominated_by_none
from d2go_fbnetv5.front.run import begin
from d2go_fbnetv5.front.searches import open_search
from d2go_fbnetv5.search import Search

POPULATION = 40  # the command's


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The area that N x 2 points, small ones being good, dominate up to a reference point."""
    inside = points[np.all(points < reference, axis=1)]
    area, height = 0.0, reference[1]
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < height:
            area += float((reference[0] - x) * (height - y))
            height = y
    return area


def searched(
    search: Search, task: str, costs: BlockCosts, values: Mapping[Topology, Any], seed: int, evaluations: int
) -> list[Topology]:
    """The networks that a front's search asks for, whose objectives are looked up."""
    front = begin(search, task, costs, POPULATION, seed)
    while asked := front.ask(min(POPULATION, evaluations - len(front.told))):
        front.tell(asked, [values[network] for network in asked])
    return list(front.told)


def drawn(values: Iterable[Topology], seed: int, evaluations: int) -> list[Topology]:
    """As many different networks, each as likely as any."""
    everything = list(values)
    order = np.random.default_rng(seed).permutation(len(everything))
    return [everything[i] for i in order[:evaluations]]


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/front.json")
    parse.add_argument("searches", type=Path, nargs="+", help="their folders")
    parse.add_argument(
        "--judged",
        type=Path,
        default=Path("output/benchmarks/exhaustive"),
        help="what exhaustive.py was given as --folder (default output/benchmarks/exhaustive)",
    )
    parse.add_argument("--evaluations", type=int, default=400, help="different networks of each front")
    parse.add_argument("--seeds", type=int, default=20)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.evaluations, args.seeds = 40, 2

    judged, rows = json.loads((args.judged / "networks.json").read_text()), []
    for folder in args.searches:
        with open_search(folder) as run:
            search, costs = run.model, block_costs(run.cfg.MODEL.FBNETV5.FAMILY, run.recipe.size)
            for task in judged:
                outputs = search.in_features[task]
                values = {
                    network: (judged[task][repr(network)]["loss"], costs.network(network, outputs))
                    for network in distinct_networks(outputs, search.supernet.num_stages)
                }
                everything = np.array(list(values.values()))
                true = everything[dominated_by_none(everything)]
                reference = true.max(axis=0) * (1 + 1e-9)
                whole = hypervolume(true, reference)
                shares: dict[str, list[float]] = {"search": [], "random": []}
                for seed in range(args.seeds):
                    told = searched(search, task, costs, values, seed, args.evaluations)
                    rival = drawn(values, seed, args.evaluations)
                    for name, networks in (("search", told), ("random", rival)):
                        points = np.array([values[network] for network in networks])
                        shares[name].append(hypervolume(points, reference) / whole)
                rows.append(
                    {
                        "task": task,
                        "search": folder.name,
                        "networks": len(values),
                        "of these the true front": len(true),
                        **{
                            f"{name}, {what}": of(found)
                            for name, found in shares.items()
                            for what, of in (("median", statistics.median), ("least", min))
                        },
                    }
                )
    options = {key: str(value) for key, value in vars(args).items()}
    title = f"Hypervolume of {args.evaluations} evaluations, by the true front's, {args.seeds} seeds"
    finish(args.output, {title: (rows, list(rows[0]))}, options=options)


if __name__ == "__main__":
    main()
