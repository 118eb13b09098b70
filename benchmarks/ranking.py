"""Does a supernet rank networks as they rank when each is trained on its own, and what does its pretraining buy?

    OMP_NUM_THREADS=1 python benchmarks/ranking.py

Supernets of family N are trained on scenes of clothes (Debian's package dataset-fashion-mnist has the images) for
--supernets steps; 8000+8000 is the one of 8000 steps after the whole recipe once more. For each task --networks
different ones are drawn, one from each of as many equal parts of the range of costs, and judged with each supernet's
weights, batch norm re-estimated; then each is trained by its task's ordinary recipe with each of --seeds, beginning
with the weights of --start. Kendall's tau between the two metrics, of trainings their mean over the seeds, says how
alike the orders are: over all networks and, since cost alone orders networks too, over the pairs within a third of the
range of cost; beside it that of the supernet's loss, by which a search goes, and that of trainings with one seed by
those with another: no judge can be expected to agree much better with them than they do. Standard errors are the
jackknife's, over networks.

--repeats networks of each task are trained with one more seed; with twice the steps, which says whether training was
long enough; and from random weights with twice the steps, whether the common start decides the order.

With --trained no network is trained: they are those of which the results have trainings with all --seeds already, by
whichever benchmark.

Figures are kept in benchmarks/results as they come, what is under way in --folder: stopped, the same command goes on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import build_run, finish, parser
from networks import (
    IN_FEATURES,
    METRICS,
    SCENES,
    SCRATCH,
    Trainer,
    add_training_options,
    judge_with,
    pretrained,
    supernet_steps,
)

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs
from d2go_fbnetv5.utils.seeding import derive_generator

THIRDS = 3


def draw_networks(
    costs: BlockCosts, task: str, paths: Sequence[str], stages: int, count: int
) -> list[Topology]:
    """Different networks from the cheapest to the dearest, one of each of ``count`` equal parts of the costs.

    Args:
        paths: that the search's head reads: what it cannot tell apart is one network.
    """
    generator = derive_generator("ranking", task)
    least = costs.network(Topology([[0] * 4] * stages), paths)
    width = (costs.network(Topology.full(stages), paths) - least) / count
    found: dict[int, Topology] = {}
    for _ in range(200_000):
        if len(found) == count:
            break
        # Blocks that are kept with one probability for all would all cost about the same.
        prob = float(torch.rand((), generator=generator))
        topology = Topology.random(stages, prob=prob, generator=generator).prune(paths)
        part = min(int((costs.network(topology, paths) - least) / width), count - 1)
        found.setdefault(part, topology)
    return [found[part] for part in sorted(found)]


def kendall(a: Sequence[float], b: Sequence[float], pairs: Sequence[tuple[int, int]]) -> float:
    """Kendall's tau over some of the pairs: concordant less discordant ones, by the geometric mean of those that are
    not tied in a and in b (tau-b)."""
    signs = [(_sign(a[i] - a[j]), _sign(b[i] - b[j])) for i, j in pairs]
    untied = math.sqrt(sum(abs(x) for x, _ in signs) * sum(abs(y) for _, y in signs))
    return sum(x * y for x, y in signs) / untied if untied else math.nan


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def jackknife(statistic: Callable[[Sequence[int]], float], count: int) -> tuple[float, float]:
    """A statistic of networks by their numbers, and its standard error: from what it is without each of them."""
    everything = range(count)
    without = [statistic([i for i in everything if i != left_out]) for left_out in everything]
    mean = statistics.fmean(without)
    variance = (count - 1) / count * sum((value - mean) ** 2 for value in without)
    return statistic(everything), math.sqrt(variance)


def repetition(trained: Sequence[Sequence[float]], costs: Sequence[float]) -> dict[str, Any]:
    """Tau of two seeds' trainings of the same networks, over all and within thirds of cost; of more, of each pair."""
    rows = [agreement(a, b, costs, costs) for a, b in itertools.combinations(trained, 2)]
    return {key: ", ".join(row[key] for row in rows) for key in ("tau", "tau within thirds")}


def agreement(
    judged: Sequence[float], trained: Sequence[float], costs: Sequence[float], rival: Sequence[float]
) -> dict[str, Any]:
    """Tau of what is judged and what is trained, over all and within thirds of cost, and its lead over a rival's."""
    least, most = min(costs), max(costs)
    part = [min(int(THIRDS * (c - least) / (most - least)), THIRDS - 1) for c in costs]

    def tau(values: Sequence[float], within: bool) -> Callable[[Sequence[int]], float]:
        def of(numbers: Sequence[int]) -> float:
            pairs = [
                (i, j) for i, j in itertools.combinations(numbers, 2) if not within or part[i] == part[j]
            ]
            return kendall(values, trained, pairs)

        return of

    row: dict[str, Any] = {}
    for within, name in ((False, "tau"), (True, "tau within thirds")):
        value, error = jackknife(tau(judged, within), len(costs))
        row[name] = f"{value:.2f} ± {error:.2f}"
    own, other = tau(judged, True), tau(rival, True)
    lead, error = jackknife(lambda numbers: own(numbers) - other(numbers), len(costs))
    return row | {"lead over cost within thirds": f"{lead:.2f} ± {error:.2f}"}


def trained_already(trainer: Trainer, task: str, start: str, seeds: Sequence[int]) -> list[Topology]:
    """The networks of which the results have trainings with all of the seeds.

    Raises:
        ValueError: they are too few to be ranked.
    """
    kept = [trainer.kept(task, start, seed) for seed in seeds]
    found = [t for t in kept[0] if all(t in other for other in kept)]
    if len(found) < THIRDS:
        raise ValueError(
            f"--trained: {trainer.results} has {len(found)} networks of {task} that were trained for "
            f"{trainer.steps[task]} steps from a supernet of {start} with seeds {', '.join(map(str, seeds))}, "
            f"needed are {THIRDS} at least"
        )
    return found


def repeated(
    trainer: Trainer, task: str, networks: Sequence[Topology], start: str, count: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """What ``count`` networks, evenly over the costs, come to under other conditions than with the first seed."""
    few = [networks[round(i * (len(networks) - 1) / max(count - 1, 1))] for i in range(count)]
    seed = seeds[0]
    conditions = {
        "one more seed": lambda t: trainer(task, t, start, max(seeds) + 1),
        "twice the steps": lambda t: trainer(task, t, start, seed, doublings=1),
        "from random weights, twice the steps": lambda t: trainer(task, t, SCRATCH, seed, doublings=1),
    }
    first = [trainer(task, t, start, seed) for t in few]
    pairs, rows = list(itertools.combinations(range(count), 2)), []
    for name, train in conditions.items():
        other = [train(t) for t in few]
        changes = [b - a for a, b in zip(first, other, strict=True)]
        rows.append(
            {
                "task": task,
                "trained with": name,
                "tau with the ranking's": kendall(first, other, pairs),
                "mean change": statistics.fmean(changes),
                "deviation of a change": statistics.stdev(changes),
                "deviation over the networks": statistics.stdev(first),
                "metrics": other,
            }
        )
    return rows


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/ranking.json")
    parse.add_argument("--scenes", choices=list(SCENES), default="fashion")
    add_training_options(parse)
    parse.add_argument(
        "--supernets",
        type=supernet_steps,
        nargs="+",
        default=["700", "2000", "8000"],
        help="their steps",
    )
    parse.add_argument(
        "--start",
        type=supernet_steps,
        help="the one of them whose weights networks begin with (default: the last)",
    )
    parse.add_argument("--tasks", nargs="+", default=["det", "seg"])
    parse.add_argument("--networks", type=int, default=30, help="of each task")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings that are ranked")
    parse.add_argument(
        "--repeats", type=int, default=6, help="networks that are trained in other ways too; 0 none"
    )
    parse.add_argument(
        "--trained",
        action="store_true",
        help="rank what has been trained already; --repeats has no part in it",
    )
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.folder, args.results = args.folder / "quick", args.folder / "quick" / "results"
        args.scenes, args.supernets, args.tasks, args.networks = "digits", ["2", "2+2"], ["seg"], 4
        args.steps, args.images, args.repeats = [2], 16, min(args.repeats, 2)

    start = args.start or args.supernets[-1]
    if start not in args.supernets:
        raise ValueError(f"--start {start}, allowed is one of --supernets: {', '.join(args.supernets)}")
    scenes = SCENES[args.scenes]
    supernets = {steps: pretrained(scenes, steps, args.folder) for steps in args.supernets}
    run = build_run(scenes.search, args.folder / "judge", ["MODEL.WEIGHTS", supernets[start]])
    costs, in_features = block_costs("N", run.recipe.size), run.model.in_features
    trainer = Trainer.of(args, scenes, supernets, args.tasks)
    networks = {
        task: trained_already(trainer, task, start, args.seeds)
        if args.trained
        else draw_networks(costs, task, in_features[task], scenes.num_stages, args.networks)
        for task in args.tasks
    }
    judged = {
        name: judge_with(scenes, weights, name, networks, args.images, args.folder / "judge", args.results)
        for name, weights in supernets.items()
    }

    rows, more, figures = [], [], {}
    for task in args.tasks:
        price = [costs.network(t, in_features[task]) for t in networks[task]]
        by_seed = [[trainer(task, t, start, seed) for t in networks[task]] for seed in args.seeds]
        trained = [statistics.fmean(metrics) for metrics in zip(*by_seed, strict=True)]
        for name, verdicts in judged.items():
            found = [verdicts[task][repr(t)] for t in networks[task]]
            for what, order in (("", [v["metric"] for v in found]), (", loss", [-v["loss"] for v in found])):
                row = {"task": task, "ranked by": f"supernet of {name} steps{what}"}
                rows.append(row | agreement(order, trained, price, price))
        rows.append({"task": task, "ranked by": "cost"} | agreement(price, trained, price, price))
        del rows[-1]["lead over cost within thirds"]
        if len(by_seed) > 1:
            rows.append(
                {"task": task, "ranked by": "trainings of one seed, another's"} | repetition(by_seed, price)
            )
        if args.repeats and not args.trained:
            more += repeated(trainer, task, networks[task], start, args.repeats, args.seeds)
        figures[task] = [
            {
                "network": t.text("-"),
                "model": t.prune(IN_FEATURES[task]).text("-"),
                "MFLOPs": p / 1e6,
                f"trained {METRICS[task]}": metric,
                "by seed": list(metrics),
                **{f"supernet {name}": verdicts[task][repr(t)] for name, verdicts in judged.items()},
            }
            for t, p, metric, metrics in zip(
                networks[task], price, trained, zip(*by_seed, strict=True), strict=True
            )
        ]
    options = {key: str(value) for key, value in vars(args).items()}
    tables = {"Orders of networks, Kendall's tau ± standard error": (rows, list(rows[0]))}
    if more:
        columns = [key for key in more[0] if key != "metrics"]
        tables["The same networks trained in other ways"] = (more, columns)
    finish(args.output, tables, options=options, networks=figures)


if __name__ == "__main__":
    main()
