"""Many searches replayed on measured losses: how often, of all networks of three stages, one of the best is found.

    OMP_NUM_THREADS=1 python benchmarks/replay.py

The supernet that ships is trained (8000 steps). The loss of each network of its first three stages, nothing kept in the
fourth, is measured for each task on each of --rows batches of training images, as a search meets it: in training mode,
batch norm with the batch's own statistics. On this table, where a step costs milliseconds, Algorithm 4 itself searches
--replays times with other seeds, as search_digits.yaml has it and with one thing changed; as there, the weights rest.
What is found, the most likely network and the best of the likeliest ones on a few batches, is judged by what was
searched: the mean loss of all rows plus the price of Appendix E.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import build_run, finish, parser, run_folder
from exhaustive import all_topologies, distinct_networks
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.engine.train import Run
from d2go_fbnetv5.search import CostRegularizer, MultitaskSearch, decide
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.seeding import derive_generator, seed_all

CONFIG = "search_digits.yaml"
STAGES = 3
AT_ONCE = 16  # networks whose features are held in memory

# What is changed of the recipe: options of the search, of its price, its length, and the rate of the probabilities.
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "prices of samples": {"expected": False},
    "its rate constant": {"arch_decay_iters": 0},
    "half its rate": {"lr": 0.5},
    "twice its rate": {"lr": 2.0},
    "twice its steps": {"length": 2},
    "a quarter of its topologies, four times its steps": {"samples_per_rank": 4, "length": 4},
    "each sample on images of its own": {"shared_images": False},
    "REINFORCE unweighted": {"importance_weighted": False},
}


def whole(topology: Topology, stages: int) -> Topology:
    """A topology of the first stages as one of the supernet, which has more of them."""
    return Topology([*topology.mask, *[(False,) * topology.num_paths] * (stages - topology.num_stages)])


class TableSupernet:
    """Hands the topology to the tasks, which look up what was measured."""

    num_stages, num_paths = STAGES, 4

    def __call__(self, images: None, topology: Topology) -> dict[str, Topology]:
        return {f"path{path}": topology for path in range(self.num_paths)}

    def forward_each(self, images: None, topologies: Sequence[Topology]) -> list[dict[str, Topology]]:
        return [self(images, topology) for topology in topologies]


class TableTask(nn.Module):
    """A task whose losses are measured.

    Args:
        name: of the task.
        losses: for each network, by what the head uses of it, one per row.
        in_features: what the head reads, by which topologies are the same network.
    """

    def __init__(self, name: str, losses: Mapping[Topology, Tensor], in_features: Sequence[str]) -> None:
        super().__init__()
        self.name, self.in_features = name, tuple(in_features)
        self.losses = {t: losses[t.prune(in_features)] for t in all_topologies(STAGES)}

    def forward(
        self, features: Mapping[str, Topology], batch: Sequence[Mapping[str, int]]
    ) -> dict[str, Tensor]:
        return {"loss": self.losses[features[self.in_features[0]]][batch[0]["row"]]}


@torch.no_grad()
def measure(run: Run, rows: int, file: Path) -> dict[str, dict[Topology, Tensor]]:
    """Each network's loss on each of ``rows`` training batches, by task and network; kept in ``file``."""
    search = run.model
    networks = {name: distinct_networks(paths, STAGES) for name, paths in search.in_features.items()}
    found: dict[str, list[list[float]]] = {name: [] for name in networks}
    if file.is_file():
        found = json.loads(file.read_text())
    search.train()
    batches = itertools.islice(run.data.train_batches(0), rows)
    for i, batch in enumerate(batches):
        for name, topologies in networks.items():
            if len(found[name]) > i:
                continue
            images, losses = search.preprocess(batch), []
            for start in range(0, len(topologies), AT_ONCE):
                some = [whole(t, search.supernet.num_stages) for t in topologies[start : start + AT_ONCE]]
                for features in search.supernet.forward_each(images, some):
                    seed_all(0, iteration=i)  # of the detector's sampled regions
                    losses.append(float(search.task_loss(name, features, batch)))
            found[name].append(losses)
        write_atomically(file, json.dumps(found))
        print(f"\rbatch {i + 1} of {rows}", end="", flush=True)
    print()
    return {
        name: dict(zip(networks[name], torch.tensor(losses).unbind(dim=1), strict=True))
        for name, losses in found.items()
    }


def replay(
    run: Run, tasks: Sequence[TableTask], rows: int, steps: int, seed: int, **changed: Any
) -> tuple[dict[str, Topology], dict[str, Topology]]:
    """What one search finds for each task: the most likely network, and the best of the likeliest ones."""
    cfg, ranks = run.cfg, 2  # the demo's processes
    factor, steps = changed.pop("lr", 1.0), steps * changed.pop("length", 1)
    price = cfg.SEARCH.COST
    cost = CostRegularizer(
        block_costs("N", run.recipe.size).matrix(STAGES),
        price.TARGET,
        price.WEIGHT,
        changed.pop("expected", price.EXPECTED),
    )
    options = {
        "samples_per_rank": ranks * cfg.SEARCH.SAMPLES_PER_RANK,
        "arch_decay_iters": steps,
        "shared_images": True,
        **changed,
    }
    search = MultitaskSearch(
        TableSupernet(),
        tasks,
        loss_window=cfg.SEARCH.LOSS_WINDOW,
        prob_min=cfg.SEARCH.PROB_MIN,
        cost=cost,
        seed=seed,
        preprocess=lambda batch: None,
        train_weights=False,
        **options,
    )
    optimizer = torch.optim.SGD(
        [search.distribution.probs], lr=factor * cfg.SOLVER.BASE_LR * cfg.SEARCH.ARCH_LR_FACTOR
    )
    generator = derive_generator("replay", seed)

    def draw(count: int) -> list[dict[str, int]]:
        return [{"row": row} for row in torch.randint(rows, (count,), generator=generator).tolist()]

    for _ in range(steps):
        losses = search(draw(search.samples_per_rank))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        search.after_step()
    rough, fine = ([draw(1) for _ in range(times * cfg.SEARCH.EVAL.BN_ITERS)] for times in (1, 3))
    decisions = decide(search, rough, fine, cfg.SEARCH.EVAL.CANDIDATES)
    return search.most_likely(), {name: found.topology for name, found in decisions.items()}


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/replay.json")
    parse.add_argument("--folder", type=Path, help="of finished runs (default output/benchmarks/replay)")
    parse.add_argument("--batch", type=int, default=32, help="images of a row")
    parse.add_argument("--rows", type=int, default=64, help="batches that losses are measured on")
    parse.add_argument("--replays", type=int, default=40)
    parse.add_argument("--steps", type=int, default=200, help="of a search")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.batch, args.rows, args.replays, args.steps = 8, 2, 2, 5
    args.folder = run_folder(args, "replay", ["batch", "rows"])

    run = build_run(CONFIG, args.folder / "judge", ["SOLVER.IMS_PER_BATCH", args.batch])
    measured = measure(run, args.rows, args.folder / "losses.json")
    tasks = [TableTask(name, losses, run.model.in_features[name]) for name, losses in measured.items()]

    cfg, costs = run.cfg.SEARCH.COST, block_costs("N", run.recipe.size)
    regularizer = CostRegularizer(costs.matrix(STAGES), cfg.TARGET, cfg.WEIGHT)
    objectives = {}
    for task in tasks:
        prices = regularizer.prices(list(measured[task.name]), task=0).tolist()
        losses = measured[task.name]
        objectives[task.name] = {t: float(losses[t].mean()) + p for t, p in zip(losses, prices, strict=True)}
    rows = []
    for variant, changed in VARIANTS.items():
        places: dict[str, dict[str, list[float]]] = {which: {} for which in ("mode", "best of the likeliest")}
        for seed in range(args.replays):
            results = replay(run, tasks, args.rows, args.steps, seed, **changed)
            for which, found in zip(places, results, strict=True):
                for task in tasks:
                    values = objectives[task.name]
                    own = values[found[task.name].prune(task.in_features)]
                    place = 100 * (sum(value < own for value in values.values()) + 1) / len(values)
                    places[which].setdefault(task.name, []).append(place)
        for which, tasks_places in places.items():
            row: dict[str, Any] = {"search": variant, "of it": which}
            for name, found_places in tasks_places.items():
                row[f"{name}, in best 5%"] = (
                    f"{100 * sum(p <= 5 for p in found_places) / len(found_places):.0f}%"
                )
                row[f"{name}, 9 of 10 in best"] = (
                    f"{sorted(found_places)[math.ceil(0.9 * len(found_places)) - 1]:.1f}%"
                )
            row["places"] = tasks_places
            rows.append(row)
        print(variant, flush=True)
    columns = [key for key in rows[0] if key != "places"]
    options = {key: str(value) for key, value in vars(args).items()}
    options["networks"] = str({name: len(values) for name, values in objectives.items()})
    finish(args.output, {f"{args.replays} searches on measured losses": (rows, columns)}, options=options)


if __name__ == "__main__":
    main()
