"""Many searches replayed on measured losses: how often, of all 256 topologies of two stages, one of the best is found.

    OMP_NUM_THREADS=1 python benchmarks/replay.py

One supernet of family N is trained on random topologies of digit scenes. Then the loss of each of its networks is
measured for each task on each of --rows batches of training images, as a search meets it: in training mode, batch norm
with the batch's own statistics. On this table, where a step costs milliseconds, Algorithm 4 itself searches --replays
times with other seeds, as search_digits_scratch.yaml has it and with one thing changed. The supernet's weights rest
meanwhile; that is what a replay lacks. What is found is judged by what was searched: the mean loss of all rows plus the
price of Appendix E.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import SEARCH_CONFIG, build_run, finish, finished, parser, run_folder, search_options
from exhaustive import all_topologies, distinct_networks
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.engine.train import Run
from d2go_fbnetv5.search import CostRegularizer, MultitaskSearch, derive_generator
from d2go_fbnetv5.utils.files import write_atomically

STAGES = 2

# What is changed of the recipe: options of the search, and the rate of the probabilities.
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "its rate constant": {"arch_decay_iters": 0},
    "twice its rate, constant": {"arch_decay_iters": 0, "lr": 2.0},
    "each sample on images of its own": {"shared_images": False},
    "REINFORCE unweighted": {"importance_weighted": False},
}


class TableSupernet:
    """Hands the topology to the tasks, which look up what was measured."""

    num_stages, num_paths = STAGES, 4

    def __call__(self, images: None, topology: Topology) -> dict[str, Topology]:
        return {"topology": topology}

    def forward_each(self, images: None, topologies: Sequence[Topology]) -> list[dict[str, Topology]]:
        return [self(images, topology) for topology in topologies]


class TableTask(nn.Module):
    """A task whose losses are measured.

    Args:
        name: of the task.
        losses: for each network, by what the head uses of it, one per row.
        in_features: what the head reads, by which topologies are the same network.
    """

    in_features = ("topology",)

    def __init__(self, name: str, losses: Mapping[Topology, Tensor], in_features: Sequence[str]) -> None:
        super().__init__()
        self.name, self.losses = name, {t: losses[t.prune(in_features)] for t in all_topologies(STAGES)}

    def forward(
        self, features: Mapping[str, Topology], batch: Sequence[Mapping[str, int]]
    ) -> dict[str, Tensor]:
        return {"loss": self.losses[features["topology"]][batch[0]["row"]]}


@torch.no_grad()
def measure(run: Run, rows: int, file: Path) -> dict[str, dict[Topology, Tensor]]:
    """Each network's loss on each of ``rows`` training batches, by task and network; kept in ``file``."""
    tasks = run.model.tasks
    networks = {name: distinct_networks(task.in_features, STAGES) for name, task in tasks.items()}
    if not file.is_file():
        run.model.train()
        alike: dict[tuple[str, ...], list[str]] = {}  # tasks whose heads read the same have the same networks
        for name, task in tasks.items():
            alike.setdefault(tuple(task.in_features), []).append(name)
        found: dict[str, list[list[float]]] = {name: [] for name in tasks}
        for i, batch in zip(range(rows), run.data.train_batches(run.start_iteration), strict=False):
            images = run.model.preprocess(batch)
            for in_features, names in alike.items():
                for name in names:
                    found[name].append([])
                for topology in networks[names[0]]:
                    features = run.model.supernet(images, topology)
                    for name in names:
                        losses = tasks[name]({key: features[key] for key in in_features}, batch)
                        found[name][i].append(float(sum(losses.values())))
            print(f"\rbatch {i + 1} of {rows}", end="", flush=True)
        print()
        write_atomically(file, json.dumps(found))
    table = json.loads(file.read_text())
    return {
        name: dict(zip(networks[name], torch.tensor(table[name]).unbind(dim=1), strict=True))
        for name in tasks
    }


def replay(
    tasks: Sequence[TableTask],
    cost: CostRegularizer,
    cfg: CfgNode,
    args: argparse.Namespace,
    seed: int,
    **changed: Any,
) -> dict[str, Topology]:
    """What one search finds for each task."""
    factor = changed.pop("lr", 1.0)
    options = {"arch_decay_iters": args.steps, "shared_images": True, **changed}
    search = MultitaskSearch(
        TableSupernet(),
        tasks,
        samples_per_rank=args.samples,
        loss_window=cfg.SEARCH.LOSS_WINDOW,
        prob_min=cfg.SEARCH.PROB_MIN,
        cost=cost,
        seed=seed,
        preprocess=lambda batch: None,
        **options,
    )
    # The weights' rate has come down by the time that the probabilities learn.
    lr = factor * cfg.SOLVER.BASE_LR * cfg.SOLVER.GAMMA * cfg.SEARCH.ARCH_LR_FACTOR
    optimizer = torch.optim.SGD([search.distribution.probs], lr=lr)
    generator = derive_generator("replay", seed)
    for _ in range(args.steps):
        rows = torch.randint(args.rows, (args.samples,), generator=generator).tolist()
        losses = search([{"row": row} for row in rows])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        search.after_step()
    return search.most_likely()


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/replay.json")
    parse.add_argument("--folder", type=Path, help="of finished runs (default output/benchmarks/replay)")
    parse.add_argument("--seed", type=int, default=0, help="of the supernet")
    parse.add_argument("--iterations", type=int, default=1000, help="of the supernet's training")
    parse.add_argument("--batch", type=int, default=32, help="images of a step and of a row")
    parse.add_argument("--rows", type=int, default=150, help="batches that losses are measured on")
    parse.add_argument("--replays", type=int, default=40)
    parse.add_argument("--steps", type=int, default=600, help="in which the probabilities learn")
    parse.add_argument("--samples", type=int, default=4, help="topologies of a step")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.iterations, args.batch, args.rows, args.replays, args.steps = 4, 4, 3, 2, 5
    args.folder = run_folder(args, "replay", ["seed", "iterations", "batch", "rows"])

    opts = search_options(args.seed, args.iterations, args.batch, 64)
    opts += ["MODEL.FBNETV5.NUM_STAGES", STAGES, "SEARCH.ALGORITHM", "random", "SEARCH.SHARED_IMAGES", False]
    finished(SEARCH_CONFIG, args.folder / "random", opts)
    run = build_run(SEARCH_CONFIG, args.folder / "random", opts)
    measured = measure(run, args.rows, args.folder / "losses.json")
    tasks = [TableTask(name, losses, run.model.tasks[name].in_features) for name, losses in measured.items()]

    cfg, costs = run.cfg.SEARCH.COST, block_costs("N", run.recipe.size)
    cost = CostRegularizer(costs.matrix(STAGES), cfg.TARGET, cfg.WEIGHT)
    objectives = {
        task.name: {t: float(losses.mean() + cost.prices([t])) for t, losses in task.losses.items()}
        for task in tasks
    }
    everything = len(all_topologies(STAGES))
    rows = []
    for variant, changed in VARIANTS.items():
        places: dict[str, list[float]] = {task.name: [] for task in tasks}
        for seed in range(args.replays):
            for name, topology in replay(tasks, cost, run.cfg, args, seed, **changed).items():
                values = objectives[name]
                better = sum(value < values[topology] for value in values.values())
                places[name].append(100 * (better + 1) / everything)
        row: dict[str, Any] = {"search": variant}
        for name, found in places.items():
            row[f"{name}, in best 10%"] = f"{100 * sum(p <= 10 for p in found) / len(found):.0f}%"
            row[f"{name}, 9 of 10 in best"] = f"{sorted(found)[math.ceil(0.9 * len(found)) - 1]:.1f}%"
        hits = [all(p <= 10 for p in each) for each in zip(*places.values(), strict=True)]
        row["all three"] = f"{100 * statistics.fmean(hits):.0f}%"
        row["places"] = places
        rows.append(row)
        print(row["search"], row["all three"], flush=True)
    columns = [key for key in rows[0] if key != "places"]
    options = {key: str(value) for key, value in vars(args).items()}
    finish(args.output, {f"{args.replays} searches on measured losses": (rows, columns)}, options=options)


if __name__ == "__main__":
    main()
