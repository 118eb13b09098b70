"""One network with three heads beside three networks: metrics, FLOPs and latency, on digit scenes.

    OMP_NUM_THREADS=1 python benchmarks/several.py
    OMP_NUM_THREADS=1 python benchmarks/several.py --latency 100

Two searches on the supernet that ships, alike but that in one cls, det and seg share a topology (SEARCH.GROUPS). Then,
by the recipe of configs/several/several_digits.yaml and from the supernet's weights: three networks of one head each,
on what the other search found for their tasks, --steps each; and as one network with three heads, in as many steps as
these take together, what the group's search found, the union of the three networks, and the linear topology. All heads
of a network see the images of a step, so that those of the one network see three times as many. Heads are those of the
tasks' own recipes, of which the detector's is light.

--latency ROUNDS trains nothing. It exports the first seed's networks to ExecuTorch and times them in turns on one
thread, that of three networks being their sum. It needs their folder, ExecuTorch, and a machine that does nothing else.

Figures are kept in benchmarks/results as they come, what is under way in --folder: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, finish, finished, mean_and_spread, parser
from networks import IN_FEATURES, METRICS, RESULTS, SCENES

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.config import as_dict, load_cfg
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.export.formats.base import ExportSpec, get_format
from d2go_fbnetv5.export.measure.subjects import open_subject
from d2go_fbnetv5.export.measure.timing import measure_in_turns
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.rules import get

TASKS, STAGES, SIZE = ("cls", "det", "seg"), 4, (128, 128)
RECIPE, SUPERNET = "several/several_digits.yaml", SCENES["digits"].shipped["8000"]
IN_COMMON = (
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.CROP.SIZE",
    "FBNETV5_DATA.DATASETS.digit_scenes_train.size",
    "FBNETV5_DATA.DATASETS.digit_scenes_val.size",
    "SOLVER.CLIP_GRADIENTS.ENABLED",
)
NETWORKS = {  # what the table calls it, its trainings
    "three": ("three networks", TASKS),
    "group": ("one, of the group's search", ("group",)),
    "union": ("one, on the union of the three", ("union",)),
    "linear": ("one, linear", ("linear",)),
}


class Kept:
    """The figures of one setting, by the seed and the training's name, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.figures: dict[str, dict[str, dict[str, Any]]] = (
            json.loads(file.read_text()) if file.is_file() else {}
        )

    def of(self, seed: int) -> dict[str, dict[str, Any]]:
        """The trainings of a seed."""
        return self.figures.setdefault(str(seed), {})

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, json.dumps(self.figures, indent=1) + "\n")


def found_by_search(args: argparse.Namespace, folder: Path, seed: int, together: bool) -> Path:
    """The topologies.json of a search for three tasks, of one topology or of three."""
    own = folder / ("search_group" if together else "search")
    opts = ["SEED", seed, "SEARCH.GROUPS", [list(TASKS)] if together else [], "MODEL.WEIGHTS", SUPERNET]
    opts += ["SOLVER.MAX_ITER", args.search_steps, "SEARCH.EVAL.RANDOM_TOPOLOGIES", 0]
    if args.quick:
        opts += ["SOLVER.IMS_PER_BATCH", 4, "SEARCH.SAMPLES_PER_RANK", 2, "SEARCH.EVAL.MAX_IMAGES", 4]
        opts += ["SEARCH.EVAL.CANDIDATES", 1, "SEARCH.EVAL.BN_ITERS", 1]
    finished("search_digits.yaml", own, opts)
    return own / "topologies.json"


def topologies(args: argparse.Namespace, folder: Path, seed: int, name: str) -> Path:
    """The file of the topology that a training's network has."""
    if name != "linear":
        return found_by_search(args, folder, seed, together=name == "group")
    file = folder / "linear.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    linear = Topology.named("linear", STAGES)
    entries = {task: {"topology": linear, "outputs": IN_FEATURES[task]} for task in TASKS}
    save_topologies(file, "N", STAGES, (96, 96), entries)
    return file


def train(args: argparse.Namespace, folder: Path, seed: int, name: str) -> dict[str, Any]:
    """Train a network, of one head by its task's name or of three; return its metrics and FLOPs."""
    own, tasks = folder / name, (name,) if name in TASKS else TASKS
    steps = args.steps * len(tasks)
    opts = ["MODEL.FBNETV5.TOPOLOGY", topologies(args, folder, seed, name), "MODEL.WEIGHTS", SUPERNET]
    opts += ["SEED", seed, "SOLVER.MAX_ITER", steps, "SOLVER.WARMUP_ITERS", min(100, steps // 5)]
    opts += ["SOLVER.BASE_LR", args.rate, "SOLVER.IMS_PER_BATCH", args.batch, "SOLVER.CHECKPOINT_PERIOD", 200]
    opts += ["FBNETV5_DATA.DATASETS.digit_scenes_val.num_images", args.images]
    # The rate ends at zero, where averaged weights are the last ones.
    opts += ["MODEL_EMA.ENABLED", False, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 8]
    recipe, models = RECIPE, {task: SCENES["digits"].model(task) for task in tasks}
    if len(tasks) == 1:  # the model that has this head by itself, by the recipe of several
        recipe, common = models[name], load_cfg(CONFIGS / RECIPE)
        opts += [part for key in IN_COMMON for part in (key, get(common, key))]
    else:  # the very heads of those models
        heads = {
            task: as_dict(load_cfg(CONFIGS / model).MODEL.FBNETV5.HEAD) for task, model in models.items()
        }
        opts += ["MODEL.FBNETV5.HEAD", {"heads": heads}]
    run = finished(recipe, own, opts)
    metrics, flops = run["metrics"], model_flops(from_run(str(own)).model, SIZE)
    return {
        "steps": steps,
        **{task: metrics.get(f"{task}/{METRICS[task]}", metrics.get(METRICS[task])) for task in tasks},
        "mflops": flops.total / 1e6,
        "backbone_mflops": flops.parts["BB"] / 1e6,
        "cpu": run["cpu"],
    }


def time_all(args: argparse.Namespace, folder: Path, trained: dict[str, dict[str, Any]]) -> None:
    """Put the milliseconds of each network of a seed among its figures."""
    folders = {name: folder / name for name in trained}
    missing = [str(path) for path in folders.values() if not (path / "model_final.pth").is_file()]
    if missing or not folders:
        raise ValueError(
            f"--latency: no training in {(missing or [folder])[0]}; train first, with the same --folder"
        )
    kind = get_format("executorch")
    kind.require()
    kind.use_threads(1)
    calls = {}
    for name, path in folders.items():
        subject, before = open_subject(str(path)), time.process_time()
        spec = ExportSpec(SIZE, subject.least, subject.outputs)
        described = kind.export(subject.module(SIZE), path / "model.pte", spec)
        print(f"{name}: exported in {time.process_time() - before:.0f} s of processor time", flush=True)
        calls[name] = partial(kind.load(path / "model.pte", described), 255 * torch.rand(1, 3, *SIZE))
    with torch.inference_mode():
        for name, latency in measure_in_turns(calls, args.latency).items():
            trained[name] |= {"ms": latency.median, "ms_spread": latency.spread}


def table(kept: Kept, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each kind of network that all of its trainings are there of, for one seed or more."""
    rows = []
    for label, parts in NETWORKS.values():
        of = [[kept.of(seed)[part] for part in parts] for seed in seeds if kept.of(seed).keys() >= set(parts)]
        if of:
            rows.append(_row(label, of))
    for row in rows:
        row["of the three's"] = row["MFLOPs"] / rows[0]["MFLOPs"]
    return rows


def _row(label: str, seeds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    def sums(key: str) -> list[float]:
        return [sum(part[key] for part in parts) for parts in seeds if all(key in part for part in parts)]

    merged = [{task: value for part in parts for task, value in part.items()} for parts in seeds]
    timed = sums("ms")
    return {
        "network": label,
        "seeds": len(seeds),
        "steps": sum(part["steps"] for part in seeds[0]),
        "MFLOPs": sum(sums("mflops")) / len(seeds),
        "of backbones": sum(sums("backbone_mflops")) / len(seeds),
        "ms": sum(timed) / len(timed) if timed else None,
        **{METRICS[task]: mean_and_spread([parts[task] for parts in merged]) for task in TASKS},
        "cpu": sum(sums("cpu")) / len(seeds),
    }


def main() -> None:
    parse = parser(__doc__, "output/benchmarks/several.json")
    parse.add_argument("--steps", type=int, default=600, help="of each of the three networks (default 600)")
    parse.add_argument(
        "--search-steps", type=int, default=200, help="of each search (default 200, the demo's)"
    )
    parse.add_argument("--batch", type=int, default=16, help="images of a step (default 16)")
    parse.add_argument("--rate", type=float, default=0.002, help="of AdamW (default 0.002, the recipe's)")
    parse.add_argument("--images", type=int, default=512, help="of the validation set (default 512)")
    parse.add_argument("--seeds", type=int, nargs="+", default=[0])
    parse.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parse.add_argument(
        "--latency", type=int, metavar="ROUNDS", help="time what has been trained, and train nothing"
    )
    parse.add_argument("--folder", type=Path, default=Path("output/benchmarks/several"))
    parse.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.search_steps, args.batch, args.images = 1, 1, 4, 4
        args.folder, args.results = args.folder / "quick", args.folder / "quick" / "results"

    setting = f"{args.search_steps}_{args.steps}_{args.batch}_{args.rate}_{args.images}"
    kept = Kept(args.results / f"several_{SCENES['digits'].model_name('det')}_{setting}.json")
    for seed in args.seeds[:1] if args.latency else args.seeds:
        folder, trained = args.folder / setting / str(seed), kept.of(seed)
        if args.latency:
            time_all(args, folder, trained)
        for name in (
            [] if args.latency else [part for network in args.networks for part in NETWORKS[network][1]]
        ):
            if name not in trained:
                trained[name] = train(args, folder, seed, name)
            kept.write()
            print(f"seed {seed}, {name}: {trained[name]}", flush=True)
        kept.write()
    options = {
        key: str(value) for key, value in vars(args).items() if key not in ("folder", "results", "output")
    }
    title = f"One network for three tasks and three networks, {args.steps} steps for each task"
    columns = [
        "network",
        "seeds",
        "steps",
        "MFLOPs",
        "of the three's",
        "of backbones",
        "ms",
        *(METRICS[task] for task in TASKS),
        "cpu",
    ]
    finish(args.output, {title: (table(kept, args.seeds), columns)}, options=options)


if __name__ == "__main__":
    main()
