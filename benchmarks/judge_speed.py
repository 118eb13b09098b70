"""How many networks are judged in a second of processor time: all at once as a tree of prefixes, and each alone.

    OMP_NUM_THREADS=1 python benchmarks/judge_speed.py

Losses and metrics of networks of the shipped supernet: of --networks random topologies, and of as many that are likely
under probabilities as a search leaves them. Both ways give the same figures; how far they differ is in the table.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import build_run, finish, parser, run_folder
from torch import nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.engine.evaluation import evaluate, precise_batch_norm
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge, Verdict
from d2go_fbnetv5.search import Search
from d2go_fbnetv5.search.decide import likeliest
from d2go_fbnetv5.utils.seeding import derive_generator, seed_all


class OneNetwork(nn.Module):
    """The supernet under one topology with one task's head: list of samples -> what the head gives."""

    def __init__(self, search: Search, task: str, topology: Topology) -> None:
        super().__init__()
        self.supernet, self.task, self.topology = search.supernet, search.tasks[task], topology
        self.preprocess = search.preprocess

    def forward(self, batch: Sequence[dict[str, Any]]) -> Any:
        features = self.supernet(self.preprocess(batch), self.topology)
        return self.task({name: features[name] for name in self.task.in_features}, batch)


@torch.no_grad()
def judge_alone(
    judge: NetworkJudge, task: str, topology: Topology, losses: bool = True, metrics: bool = True
) -> Verdict:
    """What `NetworkJudge` says of a network, by running it alone."""
    network = OneNetwork(judge.search, task, topology).eval()
    head, found, total, count = network.task, {}, 0.0, 0
    with precise_batch_norm(network, judge.statistics):
        if metrics:
            found = evaluate(network, judge.eval_batches, head.evaluator(judge.info))
        for i, batch in enumerate(judge.eval_batches if losses else ()):
            for module in head.modules():
                module.training = not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout))
            seed_all(0, iteration=i)
            said = network(batch)
            if said:
                total, count = total + len(batch) * float(sum(said.values())), count + len(batch)
        network.eval()
    return Verdict(total / count if count else math.nan, found)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    before = time.process_time()
    return work(), time.process_time() - before


def difference(a: Verdict, b: Verdict) -> float:
    pairs = [(a.loss, b.loss), *((a.metrics[key], b.metrics[key]) for key in a.metrics)]
    return max(abs(x - y) for x, y in pairs if not math.isnan(x))


def compare(
    judge: NetworkJudge, task: str, networks: Iterable[Topology], pairs: int, alone: int, **wanted: bool
) -> dict[str, Any]:
    """Both ways in turns; of those judged alone ``alone`` in each turn, others each time, stand for all."""
    ordered = judge.by_prefix((task, topology) for topology in networks)
    order = torch.randperm(len(ordered), generator=derive_generator("alone", task)).tolist()
    ratios, differs = [], 0.0
    for pair in range(pairs):
        some = [ordered[order[(pair * alone + i) % len(order)]] for i in range(alone)]
        together, fast = timed(lambda: judge(ordered, **wanted))
        verdicts, slow = timed(lambda some=some: [judge_alone(judge, *network, **wanted) for network in some])
        ratios.append((slow / alone) / (fast / len(ordered)))
        differs = max([differs, *(difference(together[n], v) for n, v in zip(some, verdicts, strict=True))])
    return {
        "task": task,
        "networks": len(ordered),
        "times as many a second, median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "largest difference": differs,
    }


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/judge_speed.json")
    parse.add_argument("--folder", type=Path, help="of the run (default output/benchmarks/judge_speed)")
    parse.add_argument("--networks", type=int, default=100)
    parse.add_argument("--images", type=int, default=512, help="of the validation set")
    parse.add_argument("--pairs", type=int, default=3)
    parse.add_argument("--alone", type=int, default=8, help="networks that are judged alone in each pair")
    parse.add_argument("--tasks", nargs="+", default=["cls", "det", "seg"])
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.networks, args.images, args.pairs, args.alone, args.tasks = 4, 32, 1, 1, ["seg"]
    folder = run_folder(args, "judge_speed", [])
    run = build_run("search_digits.yaml", folder / "judge", [])
    judge = NetworkJudge(
        run.model, run.data.info, run.data.statistics_batches(8), list(run.data.eval_batches(args.images))
    )
    stages, rows = run.cfg.MODEL.FBNETV5.NUM_STAGES, []
    for task in args.tasks:
        generator = derive_generator("judge speed", task)
        probs = torch.rand(stages, 4, generator=generator)
        sets = {
            "random": [Topology.random(stages, generator=generator) for _ in range(args.networks)],
            "likely": likeliest(probs, args.networks, run.model.in_features[task]),
        }
        for kind, networks in sets.items():
            for name, wanted in (("loss, metrics", {}), ("metrics", {"losses": False})):
                row = compare(judge, task, networks, args.pairs, args.alone, **wanted)
                rows.append({"set": kind, "of each": name, **row})
                print(rows[-1], flush=True)
    finish(
        args.output,
        {"Networks judged together and alone": (rows, list(rows[0]))},
        options={key: str(value) for key, value in vars(args).items()},
    )


if __name__ == "__main__":
    main()
