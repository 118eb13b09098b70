"""What searches have found, among the networks that they could have found.

    OMP_NUM_THREADS=1 python benchmarks/exhaustive.py output/demo

The searches are runs of configs/search_digits.yaml, whose weights rest: those of the shipped supernet. With these and
batch-norm statistics re-estimated for each network, what was found and --networks others are judged for each task: by
the loss on validation images plus the price of Appendix E, which is what a search minimises, and by the task's metric.
Topologies from which the head reaches the same blocks are one network: of the 65536 of four stages there are 3984 for a
head on one path. The others are drawn from these; --networks 0 judges all. What is judged is kept in --folder, so that
the same command goes on, and one that asks for more.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import build_run, finish, parser, run_folder

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.recipes.network_judge import AT_ONCE, NetworkJudge
from d2go_fbnetv5.engine.train import Run
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.seeding import derive_generator

CONFIG = "search_digits.yaml"
BLOCK = 8 * AT_ONCE


def all_topologies(stages: int) -> list[Topology]:
    rows = list(itertools.product((0, 1), repeat=4))
    return [Topology(mask) for mask in itertools.product(rows, repeat=stages)]


def distinct_networks(in_features: Sequence[str], stages: int) -> list[Topology]:
    """The topologies that differ in what a head that reads ``in_features`` uses, pruned for it."""
    return list({topology.prune(in_features): None for topology in all_topologies(stages)})


def judge_all(
    run: Run, networks: dict[str, list[Topology]], folder: Path, images: int, with_metric: int | None = None
) -> dict[str, Any]:
    """Loss and, of the first ones or all, primary metric of networks, by task and mask; kept in a file."""
    file = folder / "networks.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    judge = NetworkJudge(
        run.model, run.data.info, run.data.statistics_batches(8), list(run.data.eval_batches(images))
    )
    for name, topologies in networks.items():
        judged, metric = found.setdefault(name, {}), run.model.tasks[name].primary_metric
        # In the order in which they were drawn: what is judged when it is stopped is a sample of all.
        ordered = list(dict.fromkeys(topologies))
        count = len(ordered) if with_metric is None else with_metric
        for metrics, asked in ((True, ordered[:count]), (False, ordered[count:])):
            missing = [
                (name, t)
                for t in asked
                if repr(t) not in judged or (metrics and "metric" not in judged[repr(t)])
            ]
            # Those that begin alike beside each other, as they are then judged faster, but not of all at once.
            blocks = [judge.by_prefix(missing[i : i + BLOCK]) for i in range(0, len(missing), BLOCK)]
            for some in (block[i : i + AT_ONCE] for block in blocks for i in range(0, len(block), AT_ONCE)):
                for (_, topology), verdict in judge(some, metrics=metrics).items():
                    judged[repr(topology)] = {"loss": round(verdict.loss, 6)}
                    if metrics:
                        judged[repr(topology)]["metric"] = round(verdict.metrics[metric], 6)
                write_atomically(file, json.dumps(found))
                print(f"\r{name}: {len(judged)} networks", end="", flush=True)
        print()
    return found


def percent(some: int, of: int) -> float | None:
    """Of none there is no share."""
    return 100 * some / of if of else None


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/exhaustive.json")
    parse.add_argument("searches", type=Path, nargs="+", help="their folders")
    parse.add_argument("--folder", type=Path, help="of finished runs (default output/benchmarks/exhaustive)")
    parse.add_argument("--networks", type=int, default=400, help="that are judged for each task, 0 for all")
    parse.add_argument(
        "--metrics", type=int, default=400, help="of so many of them the metric is measured too"
    )
    parse.add_argument("--images", type=int, default=256, help="of the validation set")
    parse.add_argument("--tasks", nargs="+", default=["det", "seg"])
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.networks, args.images, args.tasks = 2, 16, ["seg"]
    args.folder = run_folder(args, "exhaustive", ["images"])

    files = [load_topologies(folder / "topologies.json") for folder in args.searches]
    run = build_run(CONFIG, args.folder / "judge", [])
    drawn = {}
    for name in args.tasks:
        in_features = run.model.in_features[name]
        everything = distinct_networks(in_features, run.cfg.MODEL.FBNETV5.NUM_STAGES)
        order = torch.randperm(len(everything), generator=derive_generator("networks", name)).tolist()
        drawn[name] = [everything[i] for i in order[: args.networks or None]]
    theirs = {
        name: [file.tasks[name].topology.prune(run.model.in_features[name]) for file in files]
        for name in args.tasks
    }
    asked = {name: theirs[name] + drawn[name] for name in args.tasks}
    # Of what was found itself the metric is always measured.
    judged = judge_all(run, asked, args.folder, args.images, max(args.metrics, len(files)))

    costs, rows = block_costs("N", run.recipe.size), []
    for name in args.tasks:
        task, place = run.model.tasks[name], list(run.model.tasks).index(name)
        sign = 1 if task.higher_is_better else -1
        others = [
            (
                judged[name][repr(t)],
                float(run.model.cost.prices([t], place)),
                costs.network(t, task.in_features),
            )
            for t in drawn[name]
        ]
        for folder, topology in zip(args.searches, theirs[name], strict=True):
            own, flops = judged[name][repr(topology)], costs.network(topology, task.in_features)
            objective = own["loss"] + float(run.model.cost.prices([topology], place))
            better = sum(each["loss"] + p < objective for each, p, _ in others)
            measured = [(each["metric"], f) for each, _, f in others if "metric" in each]
            dearer = [m for m, f in measured if f >= flops]
            no_dearer = [m for m, f in measured if f <= flops]
            rows.append(
                {
                    "task": name,
                    "search": folder.name,
                    "found": topology.text(", "),
                    "MFLOPs": flops / 1e6,
                    "objective": objective,
                    "best": min(each["loss"] + p for each, p, _ in others),
                    "better, % of networks": 100 * better / len(others),
                    "metric": own["metric"],
                    "cost as much and are better, %": percent(
                        sum(sign * m > sign * own["metric"] for m in dearer), len(dearer)
                    ),
                    "cost no more and are better, %": percent(
                        sum(sign * m > sign * own["metric"] for m in no_dearer), len(measured)
                    ),
                }
            )
    options = {key: str(value) for key, value in vars(args).items()}
    finish(args.output, {"What was found among others": (rows, list(rows[0]))}, options=options)


if __name__ == "__main__":
    main()
