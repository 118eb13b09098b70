"""A task that a finished search is given later, beside one that was searched for with the others.

    OMP_NUM_THREADS=1 python benchmarks/addition.py --added det

On digit scenes, from the supernet that ships. For each of --seeds the earlier tasks are searched for by
configs/search_digits.yaml, and the new one is added by configs/search_digits_addition.yaml, depth by
search_digits_addition_depth.yaml. Four kinds of networks are then trained by the new task's ordinary recipe from the
supernet's weights, and judged on --images validation images: what the addition found; what a search for all tasks at
once finds; the topology that the earlier search had found for the task that is most alike, copied; and --randoms random
ones, each block kept with probability 0.5.

The supernet has learnt cls, det and seg together. So det and seg are searched for at once by search_digits.yaml, whose
weights rest; depth, which it has not learnt, by the addition's own schedule with weights that learn.

"search, CPU s" are seconds of processor time of the steps by which the new task's topology was found: of the addition
alone, or of the search for all tasks. Figures are kept in benchmarks/results as they come, what is under way in
--folder: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ablation import draw
from common import by_seed, finish, finished, mean_and_spread, parser
from networks import IN_FEATURES, METRICS, SCENES, Trainer, add_training_options, pretrained

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies

SUPERNET = "8000"  # steps of the one that ships
EARLIER = {  # of each task that can be added: the earlier ones, and that of them which is most alike
    "det": (("cls", "seg"), "seg"),
    "seg": (("cls", "det"), "det"),
    "depth": (("cls", "det", "seg"), "seg"),
}
ADDITION = {
    "det": "search_digits_addition.yaml",
    "seg": "search_digits_addition.yaml",
    "depth": "search_digits_addition_depth.yaml",
}


class Searches:
    """The searches of one seed, each done once.

    Args:
        added: the task that comes later.
        opts: further KEY VALUE pairs of every search.
    """

    def __init__(self, folder: Path, weights: Path, added: str, seed: int, opts: Sequence[Any] = ()) -> None:
        self.folder, self.weights, self.added = folder, weights, added
        self.earlier, self.alike = EARLIER[added]
        self.opts = ["SEED", seed, "SEARCH.EVAL.RANDOM_TOPOLOGIES", 0, *opts]
        self.own = f"{added}_{seed}"

    def before(self) -> tuple[Path, float]:
        """The search for the earlier tasks: its folder, and seconds of processor time."""
        return self._search("before", "search_digits.yaml", self.earlier, ["MODEL.WEIGHTS", self.weights])

    def addition(self) -> tuple[Path, float]:
        """That which adds the task to it."""
        return self._search(
            "addition", ADDITION[self.added], (self.added,), ["SEARCH.FROM", self.before()[0]]
        )

    def together(self) -> tuple[Path, float]:
        """The search for all tasks at once."""
        tasks, weights = (*self.earlier, self.added), ["MODEL.WEIGHTS", self.weights]
        if self.added != "depth":
            return self._search("together", "search_digits.yaml", tasks, weights)
        # What has been learnt already learns more slowly, as in search_digits_lite.yaml.
        learning = ["SOLVER.LR_MULTIPLIER_OVERWRITE", [{"supernet": 0.2, "tasks.depth": 0.1}]]
        return self._search("together", ADDITION[self.added], tasks, [*weights, *learning])

    def _search(
        self, name: str, config: str, tasks: Sequence[str], opts: Sequence[Any]
    ) -> tuple[Path, float]:
        folder = self.folder / f"{self.own}_{name}"
        return folder, finished(config, folder, ["SEARCH.TASKS", list(tasks), *self.opts, *opts])["cpu"]


def networks(searches: Searches, randoms: int, seed: int) -> list[tuple[str, Topology, float]]:
    """A seed's networks: kind, topology pruned for the paths for which it was found, seconds of processor time."""
    added, alike = searches.added, searches.alike
    found = []
    for kind, task, search in (
        ("added later", added, searches.addition),
        ("searched for at once", added, searches.together),
        (f"copied from {alike}", alike, searches.before),
    ):
        folder, cpu = search()
        entry = load_topologies(folder / "topologies.json").tasks[task]
        found.append((kind, entry.topology.prune(entry.outputs), 0.0 if task == alike else cpu))
        if task == added:
            outputs = entry.outputs
    half = [[0.5] * 4] * SCENES["digits"].num_stages
    return found + [("random", t.prune(outputs), 0.0) for t in draw(half, randoms, seed, added)]


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/addition.json")
    add_training_options(parse)
    parse.set_defaults(folder=Path("output/benchmarks/addition"))
    parse.add_argument("--added", choices=list(EARLIER), default="det")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parse.add_argument("--randoms", type=int, default=2, help="random topologies of each seed")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    few: list[Any] = []
    if args.quick:
        args.folder, args.results = args.folder / "quick", args.folder / "quick" / "results"
        args.seeds, args.randoms, args.steps, args.images = [0], 1, [2], 16
        few = ["SOLVER.MAX_ITER", 4, "SEARCH.ARCH_WARMUP_ITERS", 2, "SOLVER.STEPS", []]
        few += ["SOLVER.IMS_PER_BATCH", 4]
        few += ["SOLVER.WARMUP_ITERS", 0, "SEARCH.SAMPLES_PER_RANK", 2, "SEARCH.EVAL.MAX_IMAGES", 4]
        few += ["SEARCH.EVAL.CANDIDATES", 1, "SEARCH.EVAL.BN_ITERS", 1]
    rows = compare(args, few)
    options = {key: str(value) for key, value in vars(args).items() if key not in ("folder", "results")}
    title = f"Trained networks of {args.added}, mean ± standard deviation over seeds {args.seeds}"
    finish(args.output, {title: (summarise(rows, args.added), COLUMNS)}, options=options, runs=rows)


def compare(args: argparse.Namespace, opts: Sequence[Any]) -> list[dict[str, Any]]:
    """Search and train; a row for each seed and network."""
    scenes, costs = SCENES["digits"], block_costs("N", (96, 96))
    weights = pretrained(scenes, SUPERNET, args.folder)
    start = SUPERNET
    trainer = Trainer.of(args, scenes, {start: weights}, [args.added])
    rows = []
    for seed in args.seeds:
        searches = Searches(args.folder, weights, args.added, seed, opts)
        for kind, network, cpu in networks(searches, args.randoms, seed):
            rows.append(
                {
                    "seed": seed,
                    "kind": kind,
                    "network": network.text("-"),
                    "MFLOPs": costs.network(network, IN_FEATURES[args.added]) / 1e6,
                    "trained": trainer(args.added, network, start, seed),
                    "cpu": cpu,
                }
            )
    return rows


COLUMNS = ["topology", "MFLOPs", "metric", "trained", "by seed", "search, CPU s"]


def summarise(rows: Sequence[dict[str, Any]], added: str) -> list[dict[str, Any]]:
    """A line for each kind: the mean of each seed's, and their spread over the seeds."""
    table = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        trained = by_seed(own, "trained")
        table.append(
            {
                "topology": kind,
                "MFLOPs": mean_and_spread(by_seed(own, "MFLOPs").values()),
                "metric": METRICS[added],
                "trained": mean_and_spread(trained.values()),
                "by seed": ", ".join(f"{value:.3f}" for value in trained.values()),
                "search, CPU s": round(statistics.fmean(row["cpu"] for row in own)),
            }
        )
    return table


if __name__ == "__main__":
    main()
