"""Finds the fronts of a search: of each task's networks those that no other one beats in both loss and cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from d2go_fbnetv5.arch import BlockCosts, Topology, block_costs, build_family
from d2go_fbnetv5.arch.cost import METRICS
from d2go_fbnetv5.arch.latency_table import read_latency_table
from d2go_fbnetv5.arch.topology_file import FORMAT
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge, Verdict
from d2go_fbnetv5.engine.recipes.search import SearchRecipe
from d2go_fbnetv5.front.nsga import NSGA2
from d2go_fbnetv5.front.searches import open_search
from d2go_fbnetv5.reports.front import write_front_report
from d2go_fbnetv5.search import Search
from d2go_fbnetv5.tasks.base import Task
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import json_value
from d2go_fbnetv5.utils.ranks import alone, barrier, gather, is_main, rank, world_size
from d2go_fbnetv5.utils.seeding import derive_generator, derive_seed
from d2go_fbnetv5.utils.text_files import read_json

FOLDER, KEPT = "front", "evaluations.json"
_SHIFTS = np.linspace(-8, 8, 33)  # in units of the mean cost of a block, on the scale of log odds
_RANDOM = 16  # topologies that a front is shown beside


def find_front(
    run: str | Path,
    tasks: Sequence[str] = (),
    costs: Sequence[str] = ("flops",),
    evaluations: int = 400,
    population: int = 40,
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Path:
    """Write the fronts of a finished search, and their page, into ``front/`` of its folder.

    What has been judged is kept there: stopped, the same call goes on, and ends with the same bytes. In a group of
    processes, every one of which must call it, each judges a part of the networks; what is written is the same.

    Args:
        run: the folder of a search.
        tasks: of the search; empty for all of them.
        costs: objectives beside the loss: "flops", "params", or files of latency tables.
        evaluations: different networks that are judged for each task, >= ``population``.
        population: of NSGA-II, >= 2.
        seed: of what is drawn.
        progress: called with the share of the work that is done, in [0, 1].

    Returns:
        the path of ``front.json``.

    Raises:
        InputError: the run is no search, or a task or cost is unknown; FileNotFoundError: there is no such run.
    """
    folder = Path(run)
    with open_search(folder) as opened:
        cfg, recipe = opened.cfg, cast(SearchRecipe, opened.recipe)
        known = list(recipe.model.tasks)
        unknown = [task for task in tasks if task not in known]
        if unknown:
            raise InputError(f"task {unknown[0]!r}: {folder} has {', '.join(known)}")
        prices = {name: _read_costs(name, cfg.MODEL.FBNETV5.FAMILY, recipe.size) for name in costs}
        with alone():
            judge = recipe.judge(recipe.model).networks
        header = {
            "family": cfg.MODEL.FBNETV5.FAMILY,
            "num_stages": cfg.MODEL.FBNETV5.NUM_STAGES,
            "size": list(recipe.size),
            "images": opened.data.num_eval_images(cfg.SEARCH.EVAL.MAX_IMAGES),
        }
        finder = _Finder(judge, prices, header, folder / FOLDER)
        path = finder.run(list(tasks or known), evaluations, population, seed, progress)
        barrier()  # the folder is ours until the report is written
        return path


def _read_costs(name: str, family: str, size: tuple[int, int]) -> BlockCosts:
    if name in METRICS:
        return block_costs(family, size, name)
    if not Path(name).is_file():
        raise InputError(f"cost {name!r}: allowed are {', '.join(METRICS)}, and files of latency tables")
    return read_latency_table(name, build_family(family), size)


def begin(search: Search, task: str, costs: BlockCosts, population: int, seed: int) -> NSGA2:
    """Return the search for a task's front that has not been told anything yet.

    It begins with the most likely topology, the hand-made ones, and those that are likely if blocks cost more or less.

    Args:
        costs: of blocks, by which likely topologies become smaller or larger.
        population, seed: as `find_front` has them.
    """
    outputs = search.in_features[task]
    generator = np.random.default_rng(derive_seed("front", seed, task))
    hand_made = Topology.hand_made(search.supernet.num_stages).values()
    seeds = [search.most_likely()[task], *hand_made, *_likely(search, task, costs)]
    return NSGA2(seeds, lambda topology: topology.prune(outputs), population, generator)


class _Finder:
    """The search for fronts, and what has been judged for it.

    Args:
        prices: costs of the family's parts by name.
        header: what the figures are of.
        folder: where all is kept.
    """

    def __init__(
        self, judge: NetworkJudge, prices: dict[str, BlockCosts], header: dict[str, Any], folder: Path
    ) -> None:
        self.judge, self.prices, self.header, self.folder = judge, prices, header, folder
        self.losses = self._read_kept()

    def run(
        self,
        tasks: Sequence[str],
        evaluations: int,
        population: int,
        seed: int,
        progress: Callable[[float], None],
    ) -> Path:
        costs = next(iter(self.prices.values()))
        searches = {task: begin(self.judge.search, task, costs, population, seed) for task in tasks}
        while True:
            asked = {
                task: search.ask(min(population, evaluations - len(search.told)))
                for task, search in searches.items()
            }
            if not any(asked.values()):
                break
            self._judge([(task, network) for task, networks in asked.items() for network in networks])
            for task, networks in asked.items():
                if networks:
                    searches[task].tell(networks, [self._objectives(task, network) for network in networks])
            progress(sum(len(search.told) for search in searches.values()) / (evaluations * len(tasks)))
        return self._write(searches, seed)

    def _objectives(self, task: str, network: Topology) -> tuple[float, ...]:
        outputs = self.judge.search.in_features[task]
        prices = (costs.network(network, outputs) for costs in self.prices.values())
        return (self.losses[task][network.text(" ")], *prices)

    def _judge(self, networks: Sequence[tuple[str, Topology]]) -> None:
        missing = [(task, each) for task, each in networks if each.text(" ") not in self.losses.get(task, {})]
        if missing:
            for (task, network), verdict in self._judge_together(missing, metrics=False).items():
                self.losses.setdefault(task, {})[network.text(" ")] = verdict.loss
            if is_main():
                content = {**self._identity(), "losses": self.losses}
                write_atomically(self.folder / KEPT, json.dumps(content, indent=1) + "\n")

    def _judge_together(
        self, networks: Iterable[tuple[str, Topology]], metrics: bool
    ) -> dict[tuple[str, Topology], Verdict]:
        """Return what `judge` says of networks, of which each process judges a part, on all images."""
        ordered = self.judge.by_prefix(networks)
        first, end = (len(ordered) * place // world_size() for place in (rank(), rank() + 1))
        with alone():
            mine = self.judge(ordered[first:end], metrics=metrics)
        return {network: verdict for part in gather(mine) for network, verdict in part.items()}

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.judge.search.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {**self.header, "weights": digest.hexdigest()}

    def _read_kept(self) -> dict[str, dict[str, float]]:
        path, mine = self.folder / KEPT, self._identity()
        self.folder.mkdir(exist_ok=True)
        if not path.is_file():
            return {}
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("losses"), dict):
            raise InputError(f"{path} is damaged: remove it to begin anew")
        for key, value in mine.items():
            if content.get(key) != value:
                raise InputError(
                    f"{path} has figures of other networks ({key} {content.get(key)}, now {value}): remove it to begin "
                    "anew"
                )
        return content["losses"]

    def _write(self, searches: dict[str, NSGA2], seed: int) -> Path:
        search = self.judge.search
        shown: dict[str, dict[str, list[Topology]]] = {}
        for task, found in searches.items():
            generator = derive_generator("random beside the front", seed, task)
            stages = search.supernet.num_stages
            shown[task] = {
                "front": found.front(),
                "mode": [search.most_likely()[task]],
                **{name: [topology] for name, topology in Topology.hand_made(stages).items()},
                "random": [Topology.random(stages, generator=generator) for _ in range(_RANDOM)],
            }
        verdicts = self._judge_together(
            ((t, each) for t, kinds in shown.items() for some in kinds.values() for each in some),
            metrics=True,
        )
        tasks = {}
        for name, kinds in shown.items():
            head = cast(Task, search.tasks[name])
            tasks[name] = {
                "outputs": list(head.in_features),
                "metric": head.primary_metric,
                "higher_is_better": head.higher_is_better,
                "evaluations": len(searches[name].told),
                **{
                    kind: [self._point(name, each, verdicts) for each in some] for kind, some in kinds.items()
                },
            }
        tables = {
            name: {"stage0": costs.stage0, "blocks": costs.blocks}
            for name, costs in self.prices.items()
            if name not in METRICS
        }
        content = {
            "format": FORMAT,
            **self.header,
            "costs": list(self.prices),
            "tables": tables,
            "tasks": tasks,
        }
        if is_main():
            write_front_report(self.folder, json_value(content))
        return self.folder / "front.json"

    def _point(
        self, task: str, topology: Topology, verdicts: dict[tuple[str, Topology], Verdict]
    ) -> dict[str, Any]:
        outputs = self.judge.search.in_features[task]
        network = topology.prune(outputs)
        verdict = verdicts[task, network]
        return {
            "topology": network,
            "loss": verdict.loss,
            "costs": {name: costs.network(network, outputs) for name, costs in self.prices.items()},
            "metrics": verdict.metrics,
        }


def _likely(search: Search, task: str, costs: BlockCosts) -> list[Topology]:
    """Return the most likely topologies under probabilities with other prices of a block's cost, small ones first."""
    odds = torch.logit(search.distribution.probs[list(search.tasks).index(task)].detach().double().cpu())
    price = costs.matrix(len(odds))
    price = price / price.mean()
    shifts = sorted(_SHIFTS, key=abs)
    return [Topology((odds - shift * price) > 0) for shift in shifts]
