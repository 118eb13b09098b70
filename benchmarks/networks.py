"""Networks of family N on scenes: pretrained supernets, and networks trained by their tasks' ordinary configurations.

What has been trained is kept as figures in benchmarks/results, by all that it depends on, and not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import CONFIGS, build_run, finished
from exhaustive import judge_all

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.models import ImageClassifier, LiteDepth, LiteMaskFormer, LiteRCNN
from d2go_fbnetv5.utils.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
SCRATCH = "scratch"
IN_FEATURES = {
    "cls": ImageClassifier.in_features,
    "det": LiteRCNN.in_features,
    "seg": LiteMaskFormer.in_features,
    "depth": LiteDepth.in_features,
}
METRICS = {"cls": "top1", "det": "AP", "seg": "mIoU", "depth": "delta1"}


@dataclass(frozen=True)
class Scenes:
    """Where the configurations of one kind of scenes are, under configs/.

    Args:
        name: of the scenes in the names of configurations.
        validation_set: of them.
        num_stages: of their supernet.
        models: recipes of tasks' models, under configs/, where they are not ``task/task_name.yaml``.
        shipped: the supernet that comes with the package, by its steps as `pretrained` has them; trained by their
            recipe with seed 0.
    """

    name: str
    validation_set: str
    num_stages: int
    models: Mapping[str, str] = field(default_factory=dict)
    shipped: Mapping[str, Path] = field(default_factory=dict)

    @property
    def pretraining(self) -> str:
        """The recipe that trains the supernet."""
        return f"pretrain/supernet_n_{self.name}.yaml"

    @property
    def search(self) -> str:
        """The recipe of a search on it."""
        return f"search_{self.name}.yaml"

    def model(self, task: str) -> str:
        """The recipe of a task's ordinary model."""
        return self.models.get(task, f"{task}/{task}_{self.name}.yaml")

    def model_name(self, task: str) -> str:
        """The name of that recipe in names of files."""
        return Path(self.model(task)).stem

    def validation(self, images: int) -> list[Any]:
        """Options that make the validation set that long."""
        return [f"FBNETV5_DATA.DATASETS.{self.validation_set}.num_images", images]


# Models with light heads: beside a backbone of family N the paper's detection heads take 97% of a model's FLOPs, where
# beside the paper's backbones they take 25 to 46% (Table 7). So nearly nothing that a topology does could be seen.
SCENES = {
    "digits": Scenes(
        "digits",
        "digit_scenes_val",
        4,
        models={"det": "det/det_digits_light.yaml"},
        shipped={"8000": CONFIGS / "pretrain" / "supernet_n_digits.safetensors"},
    ),
    "fashion": Scenes(
        "fashion",
        "fashion_scenes_val",
        7,
        models={"det": "det/det_fashion_light.yaml", "seg": "seg/seg_fashion_light.yaml"},
    ),
}


def add_training_options(parse: argparse.ArgumentParser) -> None:
    """Add what every benchmark has that trains networks: where, for how long, judged on what."""
    parse.add_argument("--folder", type=Path, default=Path("output/benchmarks/ranking"), help="of runs")
    parse.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    parse.add_argument(
        "--steps", type=int, nargs="+", help="of a network's training, per task (default: its recipe's)"
    )
    parse.add_argument("--images", type=int, default=1024, help="of the validation set")
    parse.add_argument("--device", default="cpu", help="that networks are trained on: cpu or cuda")


def supernet_steps(text: str) -> str:
    """An argument of a command: steps of a supernet's pretraining as `pretrained` has them."""
    if not all(part.isdecimal() and int(part) > 0 for part in text.split("+")):
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: numbers of steps such as 8000 or 8000+8000")
    return text


def pretrained(scenes: Scenes, steps: str, folder: Path, seed: int = 0) -> Path:
    """The checkpoint of a supernet that was trained for so many steps; trained in ``folder`` if it is not there.

    The whole recipe is scaled: its rate falls to zero whatever the steps. One that ships is not trained again.

    Args:
        steps: such as "8000". "8000+8000" goes on from that one by the whole recipe once more, with the next seed.
    """
    if seed == 0 and steps in scenes.shipped:
        return scenes.shipped[steps]
    own = folder / f"supernet_{scenes.name}_{steps}_{seed}"
    before, _, last = steps.rpartition("+")
    opts = ["SOLVER.MAX_ITER", last, "SEARCH.ARCH_WARMUP_ITERS", last]
    opts += ["SEED", seed + steps.count("+")]
    if before:
        opts += ["MODEL.WEIGHTS", pretrained(scenes, before, folder, seed)]
    opts += ["SOLVER.WARMUP_ITERS", min(100, int(last) // 4)]
    opts += ["SEARCH.EVAL.RANDOM_TOPOLOGIES", 0, "SEARCH.EVAL.MAX_IMAGES", 64]
    finished(scenes.pretraining, own, opts)
    return own / "model_final.pth"


def judge_with(
    scenes: Scenes,
    weights: Path,
    name: str,
    networks: dict[str, list[Topology]],
    images: int,
    folder: Path,
    results: Path,
) -> dict[str, dict[str, dict[str, float]]]:
    """Loss and metric of networks with a supernet's weights, by task and the topology's repr; kept in ``results``.

    They are kept apart by what is in the file: a supernet that is pretrained anew is another.

    Args:
        name: of the supernet in the results.
        images: of the validation set.
        folder: of the run that opens the supernet.
    """
    content = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    own = results / f"judged_{scenes.name}_{name}_{content}_{images}"
    own.mkdir(parents=True, exist_ok=True)
    run = build_run(scenes.search, folder, ["MODEL.WEIGHTS", weights, *scenes.validation(images)])
    return judge_all(run, networks, own, images)


class Trainer:
    """Trains networks by a task's ordinary recipe, each once.

    Args:
        folder: of trainings that are under way.
        start: what the weights begin with: a supernet's checkpoint by its name in the results, "scratch" for random
            ones.
        steps: of a training, by task.
        images: of the validation set.
        results: where the figures are kept, one file a task.
        device: that networks are trained on. It is no part of a figure's name: a seed's figures on two differ by less
            than those of two seeds.
    """

    def __init__(
        self,
        scenes: Scenes,
        folder: Path,
        start: Mapping[str, Path],
        steps: Mapping[str, int],
        images: int,
        results: Path = RESULTS,
        device: str = "cpu",
    ) -> None:
        self.scenes, self.folder, self.start = scenes, folder, start
        self.steps, self.images, self.results, self.device = steps, images, results, device

    @classmethod
    def of(
        cls, args: argparse.Namespace, scenes: Scenes, start: Mapping[str, Path], tasks: Sequence[str]
    ) -> Trainer:
        """As the options say that `add_training_options` has added."""
        steps = steps_by_task(scenes, tasks, args.steps)
        return cls(scenes, args.folder, start, steps, args.images, args.results, args.device)

    def __call__(self, task: str, topology: Topology, start: str, seed: int, doublings: int = 0) -> float:
        """The metric of a network after its training.

        Args:
            topology: is pruned for what the model reads. Where a supernet's figures are compared with this one, it is
                to be pruned for the head of the supernet before, which does not see what only the model sees.
            start: name of the weights that it begins with.
            doublings: how often the steps are doubled.
        """
        network, steps = topology.prune(IN_FEATURES[task]), self.steps[task] << doublings
        key = f"{network.text('-')} {start} {steps} steps {self.images} images seed {seed}"
        file = self._file(task)
        kept = _read(file)
        if key not in kept:
            metric = self._train(task, network, start, steps, seed)
            kept = _read(file) | {key: metric}  # another process may have added its own meanwhile
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(dict(sorted(kept.items())), indent=0) + "\n")
            print(f"{task} {key}: {metric:.4f}", flush=True)
        return kept[key]

    def kept(self, task: str, start: str, seed: int) -> dict[Topology, float]:
        """The metric of each network that the results have already, of that seed and as many steps and images."""
        condition = f" {start} {self.steps[task]} steps {self.images} images seed {seed}"
        kept = _read(self._file(task))
        found = {
            key.removesuffix(condition): metric for key, metric in kept.items() if key.endswith(condition)
        }
        return {
            Topology([[kept == "1" for kept in stage] for stage in network.split("-")]): metric
            for network, metric in found.items()
        }

    def _file(self, task: str) -> Path:
        return self.results / f"trained_{self.scenes.model_name(task)}.json"

    def _train(self, task: str, network: Topology, start: str, steps: int, seed: int) -> float:
        recipe, name = self.scenes.model(task), self.scenes.model_name(task)
        folder = self.folder / f"{name}_{network.text('-')}_{start}_{steps}_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "topology.json"
        paths = IN_FEATURES[task]
        save_topologies(
            file, "N", self.scenes.num_stages, (96, 96), {task: {"topology": network, "outputs": paths}}
        )
        opts = ["MODEL.FBNETV5.TOPOLOGY", file, "MODEL.FBNETV5.TOPOLOGY_TASK", task]
        opts += ["SEED", seed, "SOLVER.MAX_ITER", steps, "MODEL.DEVICE", self.device]
        opts += ["MODEL.WEIGHTS", "" if start == SCRATCH else self.start[start]]
        opts += [
            "SOLVER.WARMUP_ITERS",
            min(100, steps // 5),
            "SOLVER.CHECKPOINT_PERIOD",
            max(200, steps // 4),
        ]
        # The rate ends at zero, where averaged weights are the last ones.
        opts += ["MODEL_EMA.ENABLED", False, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 8]
        opts += self.scenes.validation(self.images)
        metric = finished(recipe, folder, opts)["metrics"][METRICS[task]]
        for checkpoint in folder.glob("model_*.pth"):
            checkpoint.unlink()
        return metric


def _read(file: Path) -> dict[str, float]:
    return json.loads(file.read_text()) if file.is_file() else {}


def steps_by_task(scenes: Scenes, tasks: Sequence[str], steps: Sequence[int] | None) -> dict[str, int]:
    """--steps as they are given, one for each task or one for all; if they are not, those of the tasks' recipes.

    Raises:
        ValueError: their number is another.
    """
    if steps is None:
        return {task: load_cfg(CONFIGS / scenes.model(task)).SOLVER.MAX_ITER for task in tasks}
    if len(steps) not in (1, len(tasks)):
        raise ValueError(
            f"--steps has {len(steps)} numbers, allowed are 1 or one for each of {', '.join(tasks)}"
        )
    return dict(zip(tasks, list(steps) * (len(tasks) if len(steps) == 1 else 1), strict=True))
