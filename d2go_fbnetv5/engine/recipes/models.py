"""MODEL.META_ARCHITECTURE "ImageClassifier", "LiteRCNN", "LiteMaskFormer", "LiteDepth" and "SeveralHeads": training
what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch import Topology, build_family
from d2go_fbnetv5.arch.topology import joint_topology
from d2go_fbnetv5.arch.topology_file import find_topology, load_topologies
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.build import build_transforms
from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.keys import CLASSIFIER, MODEL
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network, checked_head
from d2go_fbnetv5.engine.recipes.base import Recipe, Trained, get_recipe, register_recipe
from d2go_fbnetv5.models import (
    ImageClassifier,
    LiteDepth,
    LiteMaskFormer,
    LiteRCNN,
    SearchedModel,
    SeveralHeads,
)
from d2go_fbnetv5.models.base import Names
from d2go_fbnetv5.models.distillation import timm_teacher
from d2go_fbnetv5.models.reconstructions import builtin_topology
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import to_budget
from d2go_fbnetv5.utils.ranks import barrier, is_main
from d2go_fbnetv5.utils.text_files import expand_user


class ModelRecipe(Recipe):
    """A searched backbone with the paper's head for one task, or with those for several.

    Attributes:
        kind: the model's class, whose tasks have the names that topologies have in a topologies.json.
        input_divisor: images are padded to a multiple of it, 1 if not at all.
    """

    kind: type[SearchedModel]
    model: SearchedModel
    input_divisor = 32
    readers: Collection[str] | None = MODEL

    @classmethod
    def validate(cls, cfg: CfgNode, world_size: int) -> None:
        if cfg.MODEL.FBNETV5.TOPOLOGY_TASK and not cfg.MODEL.FBNETV5.TOPOLOGY:
            raise InputError(
                f"MODEL.FBNETV5.TOPOLOGY_TASK is {cfg.MODEL.FBNETV5.TOPOLOGY_TASK!r}, allowed without "
                "MODEL.FBNETV5.TOPOLOGY: nothing"
            )
        if cfg.MODEL.FBNETV5.BUDGET and not cfg.MODEL.FBNETV5.TOPOLOGY:
            raise InputError("MODEL.FBNETV5.BUDGET is set, allowed without MODEL.FBNETV5.TOPOLOGY: nothing")
        checked_head(cls.kind, as_dict(cfg.MODEL.FBNETV5.HEAD), "MODEL.FBNETV5.HEAD")
        searched_topology(cfg)
        cls._validate_input(cfg)
        distillation = cfg.MODEL.FBNETV5.DISTILLATION
        if distillation.TEACHER_WEIGHTS and not Path(distillation.TEACHER_WEIGHTS).is_file():
            raise FileNotFoundError(
                f"MODEL.FBNETV5.DISTILLATION.TEACHER_WEIGHTS names {distillation.TEACHER_WEIGHTS}, which does not exist"
            )

    @classmethod
    def _validate_input(cls, cfg: CfgNode) -> None:
        family = build_family(cfg.MODEL.FBNETV5.FAMILY)
        divisor = cls.input_divisor
        if (
            cfg.INPUT.CROP.ENABLED
            and -(-min(cfg.INPUT.CROP.SIZE) // divisor) * divisor < family.min_input_size
        ):
            raise InputError(
                f"INPUT.CROP.SIZE is {cfg.INPUT.CROP.SIZE}, allowed for family {family.name}: "
                f"{family.min_input_size} pixels or more"
            )

    @property
    def names(self) -> Names:
        """Return the names of the classes."""
        return class_names(self.cfg, self.data.info)

    def build_model(self) -> SearchedModel:
        return build_searched_model(self.cfg, self.kind, self.data.info, self.names)

    def describe(self, output_dir: Path) -> None:
        searched_network(self.cfg, self.names).write(output_dir, self.kind)

    def check_run(self, output_dir: Path) -> None:
        if not (output_dir / NETWORK_FILE).is_file():
            return
        if Network.read(output_dir).topology != searched_topology(self.cfg):
            raise InputError(
                f"MODEL.FBNETV5.TOPOLOGY is {self.cfg.MODEL.FBNETV5.TOPOLOGY!r}, whose network of "
                f"{'+'.join(model_parts(self.cfg))} is another one than that of the run in {output_dir}; choose "
                "another OUTPUT_DIR for it"
            )

    def load_weights(self, path: str, to_train: bool = True) -> None:
        load_weights(self.model, path, supernet=to_train)

    def conclude(self, trained: Trained) -> dict[str, float]:
        metrics = super().conclude(trained)
        if is_main():
            from d2go_fbnetv5.reports.models import metrics_tables  # rich, which predicting needs not

            title = f"{self.cfg.MODEL.META_ARCHITECTURE} of family {self.cfg.MODEL.FBNETV5.FAMILY}"
            for table in metrics_tables(
                metrics, title, self.data.num_eval_images(), trained.iterations, trained.seconds
            ):
                trained.console.print(table)
        barrier()
        return metrics


@register_recipe("ImageClassifier")
class ImageClassifierRecipe(ModelRecipe):
    """Trains an `ImageClassifier`."""

    kind, input_divisor = ImageClassifier, 1
    readers = MODEL + CLASSIFIER


@register_recipe("LiteRCNN")
class LiteRCNNRecipe(ModelRecipe):
    """Trains a `LiteRCNN`."""

    kind = LiteRCNN


@register_recipe("LiteMaskFormer")
class LiteMaskFormerRecipe(ModelRecipe):
    """Trains a `LiteMaskFormer`."""

    kind = LiteMaskFormer


@register_recipe("LiteDepth")
class LiteDepthRecipe(ModelRecipe):
    """Trains a `LiteDepth`."""

    kind = LiteDepth


@register_recipe("SeveralHeads")
class SeveralHeadsRecipe(ModelRecipe):
    """Trains a `SeveralHeads`."""

    kind = SeveralHeads


def model_recipe(name: str) -> type[ModelRecipe]:
    """Return the recipe of a MODEL.META_ARCHITECTURE that predicts; ValueError for any other."""
    recipe = get_recipe(name)
    if not issubclass(recipe, ModelRecipe):
        raise InputError(f"a {name} is no model that predicts")
    return recipe


def model_parts(cfg: CfgNode) -> dict[str, type[SearchedModel]]:
    """Return by its task's name each model that MODEL.META_ARCHITECTURE, one of those here, does the work of."""
    try:
        return model_recipe(cfg.MODEL.META_ARCHITECTURE).kind.parts(as_dict(cfg.MODEL.FBNETV5.HEAD))
    except InputError as error:
        raise InputError(f"MODEL.FBNETV5.HEAD: {error}") from error


def class_names(cfg: CfgNode, info: DatasetInfo) -> Names:
    """Return names of the classes that MODEL.META_ARCHITECTURE, one of those here, learns from DATASETS.TRAIN.

    Raises:
        ValueError: the data set names none.
    """
    model, names = cfg.MODEL.META_ARCHITECTURE, {}
    for task, kind in model_parts(cfg).items():
        names[task] = getattr(info, kind.names_of)
        if not names[task]:
            raise InputError(
                f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: no {kind.names_of}, which {model} learns"
            )
    return names if issubclass(model_recipe(model).kind, SeveralHeads) else next(iter(names.values()))


def searched_topology(cfg: CfgNode, reads: Mapping[str, Collection[str]] | None = None) -> Topology:
    """Return the topology of MODEL.FBNETV5.TOPOLOGY for a model, the zoo's reconstruction where that is empty.

    For several tasks it is the union of theirs, each pruned for its head; of tasks that a search has in one group that
    is their common one. MODEL.FBNETV5.TOPOLOGY_TASK names tasks as "det" or "cls+det".

    Args:
        reads: the paths that the head of a task reads, which MODEL.FBNETV5.BUDGET is for, by the names of tasks; by
            default those of MODEL.META_ARCHITECTURE, one of those here.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of that task in it.
    """
    options = cfg.MODEL.FBNETV5
    reads = reads or {task: kind.in_features for task, kind in model_parts(cfg).items()}
    if not options.TOPOLOGY:
        return joint_topology({task: builtin_topology(task.upper()) for task in reads}, reads)
    path = Path(expand_user(options.TOPOLOGY))
    if not path.exists():
        run = Path(cfg.OUTPUT_DIR)
        if (run / NETWORK_FILE).is_file() and any(run.glob("model_*.pth")):
            return Network.read(run).topology  # what goes on is the run's own, wherever the search is now
        raise FileNotFoundError(
            f"MODEL.FBNETV5.TOPOLOGY names {path}, which does not exist; a search leaves it in its OUTPUT_DIR, and "
            "with nothing here the built-in topology is used"
        )
    budget = to_budget(as_dict(options.BUDGET), "MODEL.FBNETV5.BUDGET.")
    try:
        tasks = options.TOPOLOGY_TASK or "+".join(reads)
        return find_topology(load_topologies(path), tasks, reads, budget, options.FAMILY)
    except InputError as error:
        raise InputError(f"MODEL.FBNETV5.TOPOLOGY: {error}") from error


def searched_network(cfg: CfgNode, names: Names) -> Network:
    """Return the network of a configuration that `ModelRecipe.validate` has passed, for classes of these names."""
    whole = cfg.clone()
    whole.defrost()
    if set(model_parts(cfg)) != {"cls"}:
        whole.FBNETV5_DATA.CROP_SIZE_TEST = 0  # boxes and maps are those of the whole image
    return _network(cfg, names, build_transforms(whole)[1])


def _network(cfg: CfgNode, names: Names, images: EvalTransform) -> Network:
    return Network(
        cfg.MODEL.META_ARCHITECTURE,
        cfg.MODEL.FBNETV5.FAMILY,
        searched_topology(cfg),
        names,
        as_dict(cfg.MODEL.FBNETV5.HEAD),
        tuple(cfg.MODEL.PIXEL_MEAN),
        tuple(cfg.MODEL.PIXEL_STD),
        images,
        tuple(cfg.IMPORTS),
        tuple(cfg.IMPORT_FOLDERS),
    )


def build_searched_model(
    cfg: CfgNode, kind: type[SearchedModel], info: DatasetInfo, names: Names
) -> SearchedModel:
    """Build the model of a configuration that `ModelRecipe.validate` has passed, with its first weights.

    Raises:
        ValueError: an option of MODEL.FBNETV5.HEAD is out of range, or the teacher cannot be had.
    """
    arguments = model_arguments(cfg, kind, info, names)
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"MODEL.FBNETV5.HEAD: {error}") from error


def model_arguments(
    cfg: CfgNode, kind: type[SearchedModel], info: DatasetInfo, names: Names
) -> dict[str, Any]:
    """Return the arguments that `build_searched_model` makes a model of."""
    # ``kind`` may be a trainer's, with a constructor of its own.
    own = model_recipe(cfg.MODEL.META_ARCHITECTURE).kind
    arguments = _network(cfg, names, EvalTransform(None)).arguments(own)
    distillation = cfg.MODEL.FBNETV5.DISTILLATION
    if issubclass(kind, (LiteMaskFormer, SeveralHeads)):
        arguments["ignore"] = info.sem_seg_ignore
    if distillation.TEACHER:
        arguments["teacher"] = timm_teacher(distillation.TEACHER, len(names), distillation.TEACHER_WEIGHTS)
        arguments["teacher_weight"] = distillation.WEIGHT
    return arguments
