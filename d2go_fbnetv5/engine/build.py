"""From a configuration to data, optimizer and schedule. Models and tools take typed arguments; cfg ends here."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from d2go_fbnetv5.data import (
    ClassifyTransform,
    EvalTransform,
    TrainTransform,
    build_dataset,
    build_eval_loader,
    build_train_loader,
    look_at_sets,
)
from d2go_fbnetv5.engine.compile import compile_blocks
from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.precision import Precision
from d2go_fbnetv5.engine.schedule import build_schedule
from d2go_fbnetv5.search import AdaptingSearch, Search
from d2go_fbnetv5.search.optimizer_groups import arch_group, weight_groups
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import rank, world_size

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """The data of a run, this process' part of it.

    Attributes:
        info: what is labelled.
        images_per_step: of training, over all processes.
        group_by_orientation: whether a training batch has only wide or only upright images.
    """

    info: DatasetInfo
    train_set: Any
    test_set: Any
    train_transform: Callable[..., Any]
    eval_transform: Callable[..., Any]
    images_per_step: int
    num_workers: int
    seed: int
    group_by_orientation: bool = False

    @property
    def batch_size(self) -> int:
        """Return how many images a process trains on in a step."""
        return self.images_per_step // world_size()

    def train_batches(self, start_iteration: int = 0) -> Iterator[Batch]:
        """Endless batches, the first one that of `start_iteration`."""
        return build_train_loader(
            self.train_set,
            self.train_transform,
            self.batch_size,
            self.seed,
            rank(),
            world_size(),
            start_iteration,
            self.num_workers,
            self.group_by_orientation,
        )

    def statistics_batches(self, count: int) -> list[Batch]:
        """About `count` training batches over all processes, as many on each, to estimate statistics on."""
        batches = self.train_batches()
        return [next(batches) for _ in range(-(-count // world_size()))]

    def eval_batches(self, max_images: int = 0) -> Iterable[Batch]:
        """This process' part of the test set, or of its first `max_images`; can be iterated over and over."""
        dataset = self.test_set
        if 0 < max_images < len(dataset):
            dataset = Subset(dataset, range(max_images))
        return build_eval_loader(
            dataset, self.eval_transform, self.batch_size, rank(), world_size(), self.num_workers
        )

    def num_eval_images(self, max_images: int = 0) -> int:
        return min(max_images, len(self.test_set)) if max_images else len(self.test_set)


def build_data(cfg: CfgNode, seed: int, open_set: Callable[[CfgNode, str], Any] | None = None) -> Data:
    """Open the data sets of DATASETS.

    Args:
        seed: of order and augmentation.
        open_set: another way to open a set by its name, of a trainer that has it open already.

    Raises:
        ValueError, FileNotFoundError: an unknown name, a broken index, sets that label different things or nothing.
    """
    open_set = open_set or open_dataset
    # One that is trained on and judged by is opened, and warned of, once.
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, cfg.DATASETS.TEST[0]))
    sets = {name: open_set(cfg, name) for name in names}
    train_sets = [sets[name] for name in cfg.DATASETS.TRAIN]
    test_set = sets[cfg.DATASETS.TEST[0]]
    info = train_sets[0].info
    for name, dataset in sets.items():
        if len(dataset) == 0:
            raise InputError(f"the data set {name} is empty")
        if dataset.info != info:
            raise InputError(
                f"the data sets {cfg.DATASETS.TRAIN[0]} and {name} do not have the same class names and unit of depth"
            )
    look_at_sets("DATASETS.TRAIN", dict(zip(cfg.DATASETS.TRAIN, train_sets, strict=True)))
    if cfg.DATASETS.TEST[0] not in cfg.DATASETS.TRAIN:
        look_at_sets("DATASETS.TEST", {cfg.DATASETS.TEST[0]: test_set})
    train_transform, eval_transform = build_transforms(cfg)
    return Data(
        info=info,
        train_set=train_sets[0] if len(train_sets) == 1 else ConcatDataset(train_sets),
        test_set=test_set,
        train_transform=train_transform,
        eval_transform=eval_transform,
        images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING
        and not cfg.INPUT.CROP.ENABLED
        and all(hasattr(dataset, "sizes") for dataset in train_sets),
    )


def build_transforms(cfg: CfgNode) -> tuple[TrainTransform | ClassifyTransform, EvalTransform]:
    """Build the transforms of images for training and for evaluation, from INPUT and FBNETV5_DATA."""
    crop, options = cfg.INPUT.CROP, cfg.FBNETV5_DATA
    flip = 0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0
    train: TrainTransform | ClassifyTransform
    if options.CROP_AREA:
        train = ClassifyTransform(
            tuple(crop.SIZE),
            area=tuple(options.CROP_AREA),
            flip=flip,
            color=options.COLOR_JITTER,
            rand_augment=options.RAND_AUGMENT,
            erase=options.RANDOM_ERASE,
        )
    else:
        train = TrainTransform(
            short_side=list(cfg.INPUT.MIN_SIZE_TRAIN),
            crop=tuple(crop.SIZE) if crop.ENABLED else None,
            flip=flip,
            color=options.COLOR_JITTER,
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            color_ssd=cfg.INPUT.COLOR_AUG_SSD,
            max_category=crop.SINGLE_CATEGORY_MAX_AREA,
        )
    size, center = cfg.INPUT.MIN_SIZE_TEST, options.CROP_SIZE_TEST
    evaluation = EvalTransform(
        short_side=size or None,
        crop=center or None,
        max_size=cfg.INPUT.MAX_SIZE_TEST if size and not center else None,
    )
    return train, evaluation


def open_dataset(cfg: CfgNode, name: str) -> Any:
    """Open a data set by its name in DATASETS: one of FBNETV5_DATA.DATASETS, or a registered one.

    Raises what opening it raises; a ValueError names the set.
    """
    options = cfg.FBNETV5_DATA.DATASETS.get(name, {})
    if not isinstance(options, CfgNode) and options:
        raise InputError(f"FBNETV5_DATA.DATASETS.{name} is {options!r}, allowed: a group of options")
    options = as_dict(options) if options else {}
    reader = options.pop("READER", name)
    try:
        return build_dataset(reader, **options)
    except InputError as error:
        raise InputError(f"DATASETS, {name}: {error}") from error


def build_param_groups(
    cfg: CfgNode,
    model: nn.Module,
    left_out: Collection[nn.Parameter] = (),
    factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Build a model's weights in groups, each with its rate (SOLVER.LR_MULTIPLIER_OVERWRITE) and decay.

    Norms and embeddings have a decay of their own. Of several factors whose keys are part of a weight's name, the
    last one counts.

    Args:
        left_out: parameters that are in none of these groups.
        factors: of the rate, by a part of a weight's name, before those of SOLVER.LR_MULTIPLIER_OVERWRITE.

    Raises:
        ValueError: a factor's key is part of no weight's name.
    """
    solver = cfg.SOLVER
    decays = {
        "weights": solver.WEIGHT_DECAY,
        "norms": solver.WEIGHT_DECAY_NORM,
        "embeddings": solver.WEIGHT_DECAY_EMBED,
    }
    given = {part: factor for entry in solver.LR_MULTIPLIER_OVERWRITE for part, factor in entry.items()}
    skipped = {id(parameter) for parameter in left_out}
    names = [name for name, parameter in model.named_parameters() if id(parameter) not in skipped]
    for part in given:
        if not any(part in name for name in names):
            raise InputError(
                f"SOLVER.LR_MULTIPLIER_OVERWRITE has {part!r}, allowed: a part of a weight's name, such as {names[0]}"
            )
    return weight_groups(model, solver.BASE_LR, decays, dict(factors or {}) | given, left_out)


def build_search_groups(cfg: CfgNode, search: Search) -> list[dict[str, Any]]:
    """`build_param_groups` of a search's weights, and its probabilities at BASE_LR * SEARCH.ARCH_LR_FACTOR.

    What an `AdaptingSearch` has of an earlier search learns at SEARCH.ADAPT.LR_FACTOR of the rate.
    """
    probs = search.distribution.probs
    rate = cfg.SOLVER.BASE_LR * cfg.SEARCH.ARCH_LR_FACTOR
    kept = search.kept if isinstance(search, AdaptingSearch) else ()
    factors = dict.fromkeys(kept, cfg.SEARCH.ADAPT.LR_FACTOR)
    return [*build_param_groups(cfg, search, [probs], factors), arch_group(probs, rate)]


def build_optimizer(cfg: CfgNode, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD or AdamW over groups that bring their own rates and decays."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "adamw":
        return torch.optim.AdamW(param_groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), eps=solver.EPS)
    return torch.optim.SGD(
        param_groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
    )


def build_lr_schedule(cfg: CfgNode) -> ParamScheduler:
    """Build the multiplier of every group's rate over progress in [0, 1)."""
    solver = cfg.SOLVER
    return build_schedule(
        solver.LR_SCHEDULER_NAME,
        solver.MAX_ITER,
        steps=solver.STEPS,
        gamma=solver.GAMMA,
        num_decays=solver.NUM_DECAYS,
        end_factor=solver.BASE_LR_END / solver.BASE_LR,
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
    )


def build_precision(cfg: CfgNode, device: torch.device) -> Precision:
    """Build the arithmetic of a step from SOLVER.AMP."""
    return Precision(device, cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else None)


def compile_model(cfg: CfgNode, model: nn.Module) -> None:
    """Compile the model's blocks, in place, where MODEL.FBNETV5.COMPILE says so.

    Raises:
        ValueError: torch.compile does not work on this machine, or the model has no blocks of ours.
    """
    if cfg.MODEL.FBNETV5.COMPILE:
        try:
            compile_blocks(model)
        except InputError as error:
            raise InputError(f"MODEL.FBNETV5.COMPILE is True: {error}") from error


def clip_each_norm(parameters: Iterable[nn.Parameter], most: float, norm_type: float) -> None:
    """Clip each parameter's gradient to a norm of its own, in place, as ``clip_grad_norm_`` called for each does.

    All at once, as each call has half a dozen kernels.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for same in _by_dtype(gradients):
        norms = torch.stack(list(torch._foreach_norm(same, norm_type)))
        factors = (most / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(same, list(factors.unbind()))


def _by_dtype(tensors: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    found: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        found.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return found.values()


def build_clipping(cfg: CfgNode) -> Callable[[Iterable[nn.Parameter]], None] | None:
    """Detectron2's: "value" clips each entry, "norm" each parameter's norm, "full_model" (D2Go's) that of all."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None

    def clip_gradients(parameters: Iterable[nn.Parameter]) -> None:
        if clip.CLIP_TYPE == "value":
            torch.nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        elif clip.CLIP_TYPE == "full_model":
            torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
        else:
            clip_each_norm(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    return clip_gradients
