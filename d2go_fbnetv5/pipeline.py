"""From photographs to a file for a phone: the steps, the configuration of each, and how one that is done is known."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from d2go_fbnetv5.arch import block_costs, build_family
from d2go_fbnetv5.arch.cost import check_size
from d2go_fbnetv5.arch.latency_table import read_latency_table
from d2go_fbnetv5.data import ImageFolders
from d2go_fbnetv5.data.image_folders import HOLD_OUT
from d2go_fbnetv5.engine.recipes.models import ModelRecipe, model_recipe
from d2go_fbnetv5.engine.validate import check_device
from d2go_fbnetv5.export import get_format
from d2go_fbnetv5.export.api import DESCRIPTION
from d2go_fbnetv5.pseudo_labels.output import Output
from d2go_fbnetv5.pseudo_labels.teacher import list_teachers
from d2go_fbnetv5.reports.history import is_evaluation, read_history
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.shipped import or_shipped
from d2go_fbnetv5.utils.text_files import read_json_object

_RECIPES = {"cls": "ImageClassifier", "det": "LiteRCNN", "seg": "LiteMaskFormer"}
TASKS = tuple(_RECIPES)
OWN_LABELS = (
    "dataset"  # a --teacher that keeps the labels that the photographs have: a classifier's, by their folders
)
_BEGUN = "start.json"
_LEAST_PHOTOS = 2 * HOLD_OUT
# Of a detector's heads: the paper's would take 97% of it, and a budget would say nothing about what runs on the phone.
_WIDTH_BESIDE_N = 0.125

_UNITS = {"ms": "latency", "flops": "flops", "params": "params"}
_BUDGET = re.compile(r"([0-9.]+(?:e[-+]?[0-9]+)?) *([kmg]?) *(ms|flops|params)", re.IGNORECASE)
_THOUSANDS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """The most that a network's backbone may cost.

    Attributes:
        most: over 0.
        metric: "flops", "params" or "latency" (milliseconds).
    """

    most: float
    metric: str


def parse_budget(text: str) -> Budget:
    """Read "12 ms", "300M flops", "0.3 GFLOPs" or "5e5 params"; an InputError says what is allowed instead."""
    found = _BUDGET.fullmatch(text.strip().lower())
    try:
        most = float(found[1]) * _THOUSANDS[found[2]] if found else 0.0
    except ValueError:  # of two points
        most = 0.0
    if found is None or not 0 < most < float("inf") or (found[3] == "ms" and found[2]):
        raise InputError(
            f"--budget is {text[:50]!r}, allowed is a number over 0 with its unit, such as '12 ms', '300M flops' or "
            "'500k params'"
        )
    return Budget(most, _UNITS[found[3]])


@dataclass(frozen=True)
class Scale:
    """A scale is what the device is for: how large the networks and images are, and how long they are trained."""

    family: str
    num_stages: int
    size: int
    search_iterations: int
    train_iterations: int
    files: str
    warmup_share: float  # of the search, before the probabilities learn
    decay_share: float  # of the search, before the rate falls


# Without a GPU as in the demo; with one a quarter of the paper's images, and its shares of a search.
_SCALES = {
    "cpu": Scale("N", 4, 96, 3000, 3000, "_cpu", 0.7, 0.65),
    "cuda": Scale("A", 7, 224, 10_000, 20_000, "", 2 / 3, 1 / 3),
}


@dataclass(frozen=True)
class Wishes:
    """A user's wishes; zero and "" stand for what the device is for.

    Attributes:
        photos: the folder of photographs.
        teacher: the name of a teacher, ``module:function``, or "dataset".
        options: of the teacher, by their names.
        budget: as `parse_budget` reads it.
        latency_table: a file, for a budget in milliseconds alone.
        size: pixels of an image's sides.
        iterations: of the search, and of the training.
        weights: what the search's supernet starts from.
        evaluations: networks that are judged for the front.
    """

    photos: str
    output: str
    task: str
    teacher: str
    budget: str
    options: Mapping[str, str] = field(default_factory=dict)
    latency_table: str = ""
    device: str = "cuda"
    family: str = ""
    size: int = 0
    iterations: int = 0
    weights: str = ""
    evaluations: int = 200
    format: str = "executorch"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its file, and what it is.
        tool: such as "train_net".
        arguments: of the tool. Where an earlier run was cut off, the same ones go on.
        is_done: whether its result is there.
        config: of the tool, {} for one that has none.
    """

    name: str
    tool: str
    arguments: tuple[str, ...]
    is_done: Callable[[], bool]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """Return the command as one types it."""
        return shlex.join([f"d2go_fbnetv5.{self.tool}", *self.arguments])


def plan(wishes: Wishes, num_processes: int = 1) -> list[Step]:
    """Return the steps, in order: labels for two parts of the photographs, search, front, training, export.

    Args:
        num_processes: of those steps that can use several.

    Raises:
        InputError, FileNotFoundError: a wish cannot be met; one sentence that names it.
    """
    return _Planner(wishes, num_processes).steps()


class _Planner:
    """Checks wishes, and gives the steps with the paths of all files."""

    def __init__(self, wishes: Wishes, num_processes: int) -> None:
        check_device("--device", wishes.device, num_processes)
        self.wishes, self.scale = wishes, _SCALES[wishes.device.split(":")[0]]
        self.is_small = self.scale.files == "_cpu"
        if wishes.task not in TASKS:
            raise InputError(f"--task is {wishes.task!r}, allowed: {', '.join(TASKS)}")
        self.recipe = model_recipe(_RECIPES[wishes.task])
        self.photos, self.output = Path(wishes.photos).resolve(), Path(wishes.output).resolve()
        _check_photos(wishes, self.recipe)
        if self.output.is_relative_to(self.photos):
            raise InputError(
                f"--output is {wishes.output}, in the folder of photographs; allowed: any other folder"
            )
        self.family, self.side = wishes.family or self.scale.family, wishes.size or self.scale.size
        self.budget = parse_budget(wishes.budget)
        self._check_budget()
        self.weights = _weights(wishes.weights)
        get_format(wishes.format, suffix=True).require()
        self.several = ("--num-processes", str(num_processes)) if num_processes > 1 else ()
        self.found, self.trained = self.output / "search", self.output / wishes.task
        self.cost = str(Path(wishes.latency_table).resolve()) if wishes.latency_table else self.budget.metric

    def _check_budget(self) -> None:
        table, is_time = self.wishes.latency_table, self.budget.metric == "latency"
        if is_time != bool(table):
            allowed = "FLOPs or parameters ('300M flops')" if is_time else "milliseconds ('12 ms')"
            whether = "with" if table else "without"
            raise InputError(
                f"--budget is {self.wishes.budget!r}, allowed {whether} --latency-table: {allowed}"
            )
        family, size = build_family(self.family), (self.side, self.side)
        check_size(size, family)
        costs = (
            read_latency_table(table, family, size)
            if table
            else block_costs(family, size, self.budget.metric)
        )
        try:
            costs.target(self.budget.most, self.scale.num_stages, self.recipe.kind.in_features)
        except InputError as error:
            raise InputError(f"--budget {error}") from error

    def steps(self) -> list[Step]:
        task, exported = self.wishes.task, self.output / self.wishes.format
        options = ("--tasks", task, "--cost", self.cost, "--evaluations", str(self.wishes.evaluations))
        front, run = self._front, ("--run", str(self.trained))
        file = ("--format", self.wishes.format, "--output", str(exported))
        return [
            self._labels("1_labels_train", "train"),
            self._labels("2_labels_val", "val"),
            self._training("3_search", self._search(), self.found, (self.found / "report.html").is_file),
            Step("4_front", "front", (str(self.found), *options), front.is_file),
            self._training("5_train", self._model(), self.trained, lambda: _is_judged(self.trained)),
            Step("6_export", "export", (*run, *file), lambda: _is_exported(exported)),
        ]

    @property
    def _front(self) -> Path:
        return self.found / "front" / "front.json"

    def _labelled(self, part: str) -> Output:
        return Output(self.output / "labels" / part)

    def _labels(self, name: str, part: str) -> Step:
        wishes, output = self.wishes, self._labelled(part)
        teacher = {"SOURCE": "teacher", "TEACHER": wishes.teacher, "OPTIONS": dict(wishes.options)}
        config = {
            "IMAGES": {"READER": "image_folders", "folders": str(self.photos), "part": part},
            wishes.task.upper(): {"SOURCE": OWN_LABELS} if wishes.teacher == OWN_LABELS else teacher,
            "NUM_WORKERS": 2 if self.is_small else 8,
            "DEVICE": wishes.device,
            "OUTPUT_DIR": str(output.folder),
        }
        return Step(name, "pseudo_label", self._arguments(name), output.index.is_dir, config)

    def _training(
        self, name: str, config: Mapping[str, Any], output: Path, is_done: Callable[[], bool]
    ) -> Step:
        sets = {
            f"photos_{part}": {"READER": "multitask", "index": str(self._labelled(part).index)}
            for part in ("train", "val")
        }
        data = {
            "FBNETV5_DATA": {**config.get("FBNETV5_DATA", {}), "DATASETS": sets},
            "DATASETS": {"TRAIN": ["photos_train"], "TEST": ["photos_val"]},
            "OUTPUT_DIR": str(output),
        }
        return Step(name, "train_net", (*self._arguments(name), "--resume"), is_done, {**config, **data})

    def _arguments(self, name: str) -> tuple[str, ...]:
        return ("--config-file", str(self.output / f"{name}.yaml"), *self.several)

    def _search(self) -> dict[str, Any]:
        wishes, scale, side = self.wishes, self.scale, self.side
        iterations = wishes.iterations or scale.search_iterations
        cost: dict[str, Any] = {
            "METRIC": self.budget.metric,
            "BUDGET": {wishes.task: self.budget.most},
            "SIZE": [side, side],
        }
        if wishes.latency_table:
            cost["TABLE"] = self.cost
        heads: dict[str, Any] = {} if wishes.task == "cls" else {"feature": "path1"}  # as the models do
        if wishes.task == "det":
            heads["anchor_sizes"] = _anchors(side)[::2] if self.is_small else _anchors(side)
        search: dict[str, Any] = {
            "TASKS": [wishes.task],
            "COST": cost,
            "ARCH_WARMUP_ITERS": round(scale.warmup_share * iterations),
        }
        if heads:
            search["HEADS"] = {wishes.task: heads}
        return {
            "_BASE_": f"start/_search{scale.files}.yaml",
            "MODEL": {
                "DEVICE": wishes.device,
                "WEIGHTS": self.weights,
                "FBNETV5": {"FAMILY": self.family, "NUM_STAGES": scale.num_stages},
            },
            "SEARCH": search,
            **_images(side, side, crop=True),
            "SOLVER": {
                "MAX_ITER": iterations,
                "STEPS": [max(1, round(scale.decay_share * iterations))],
                "CHECKPOINT_PERIOD": _period(iterations),
            },
        }

    def _model(self) -> dict[str, Any]:
        wishes, side = self.wishes, self.side
        iterations = wishes.iterations or self.scale.train_iterations
        network: dict[str, Any] = {
            "FAMILY": self.family,
            "TOPOLOGY": str(self._front),
            "BUDGET": {self.cost: self.budget.most},
        }
        if wishes.task == "det":
            network["HEAD"] = {"anchor_sizes": _anchors(side)}
            if self.family == "N":
                network["HEAD"]["width"] = _WIDTH_BESIDE_N
        return {
            "_BASE_": f"start/_{wishes.task}{self.scale.files}.yaml",
            "MODEL": {
                "DEVICE": wishes.device,
                "WEIGHTS": str(self.found / "model_final.pth"),
                "FBNETV5": network,
            },
            "MODEL_EMA": {"DECAY": round(1 - 15 / max(30, iterations), 5)},  # the last fifteenth of the steps
            **_images(side, side if wishes.task == "cls" else 0, crop=wishes.task != "det"),
            "SOLVER": {
                "MAX_ITER": iterations,
                "WARMUP_ITERS": iterations // 20,
                "CHECKPOINT_PERIOD": _period(iterations),
            },
        }


def _check_photos(wishes: Wishes, recipe: type[ModelRecipe]) -> None:
    photos = ImageFolders(wishes.photos)
    if len(photos) < _LEAST_PHOTOS:
        raise InputError(
            f"folder of images {wishes.photos} has {len(photos)}, allowed: {_LEAST_PHOTOS} or more, every "
            f"{HOLD_OUT}th to judge by"
        )
    if wishes.teacher == OWN_LABELS:
        if not getattr(photos.info, recipe.kind.names_of):
            raise InputError(
                f"--teacher is {OWN_LABELS}, allowed with --task cls and photographs in a folder for each class"
            )
    elif wishes.teacher not in list_teachers() and ":" not in wishes.teacher:
        raise InputError(
            f"--teacher is {wishes.teacher!r}, allowed: {', '.join([*list_teachers(), OWN_LABELS])}, or a function of "
            "yours, module:function"
        )


def _weights(path: str) -> str:
    if not path:
        return path
    file = Path(or_shipped(path))
    if not file.is_file():
        raise FileNotFoundError(f"--weights names {path}, which does not exist")
    return str(file.resolve())


def _images(side: int, crop_test: int, crop: bool) -> dict[str, Any]:
    """Return the keys of images: in training short sides a seventh longer than the crop, or whole images."""
    short = side * 8 // 7
    sizes: dict[str, Any] = {
        "MIN_SIZE_TRAIN": [short if crop else side],
        "MIN_SIZE_TEST": short if crop_test else side,
        "CROP": {"ENABLED": crop, "TYPE": "absolute", "SIZE": [side, side]},
    }
    if not crop:
        sizes |= {"MAX_SIZE_TRAIN": 2 * side, "MAX_SIZE_TEST": 2 * side}
    return {"INPUT": sizes, "FBNETV5_DATA": {"CROP_SIZE_TEST": crop_test}}


def _anchors(side: int) -> list[float]:
    """Return sizes of boxes in pixels, from an eighth of an image's side to nearly all of it."""
    return [round(side * share, 1) for share in (1 / 8, 1 / 5, 1 / 3, 1 / 2, 4 / 5)]


def _period(iterations: int) -> int:
    return max(1, min(1000, iterations // 5))


def _is_judged(run: Path) -> bool:
    history = read_history(run)
    return (run / "model_final.pth").is_file() and bool(history) and is_evaluation(history[-1])


def _is_exported(folder: Path) -> bool:
    """Tell whether a file is there that has passed its check, and its description."""
    if not (folder / DESCRIPTION).is_file():
        return False
    file = Path(folder, str(read_json_object(folder / DESCRIPTION).get("file")))
    return file.is_file() and ".unchecked" not in file.suffixes


def begin(wishes: Wishes, steps: Sequence[Step]) -> None:
    """Write what is not there yet into the folder of the steps: their configurations, and `steps.sh` with all commands.

    A file that is there stays as it is, for it may have been changed since.

    Raises:
        InputError: other wishes were begun there; OSError: the folder cannot be written.
    """
    folder, wanted = Path(wishes.output), json.loads(json.dumps(asdict(wishes)))
    begun = folder / _BEGUN
    if begun.is_file():
        for key, value in read_json_object(begun).items():
            if wanted.get(key) != value:
                raise InputError(
                    f"--output is {folder}, where other steps were begun ({key} {value!r}, now {wanted.get(key)!r}); "
                    "allowed: the same command, or another --output"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, json.dumps(wanted, indent=1) + "\n")
    for step in steps:
        path = folder / f"{step.name}.yaml"
        if step.config and not path.exists():
            text = yaml.safe_dump(
                dict(step.config), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
            )
            write_atomically(
                path,
                f"# d2go_fbnetv5.{step.tool} reads it. Change what you like before the step is run.\n{text}",
            )
    write_atomically(folder / "steps.sh", "".join(f"{step.command}\n" for step in steps))
