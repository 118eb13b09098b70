"""Ranges and choices of a configuration, checked before anything is built or written."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch.cost import MOST_PIXELS
from d2go_fbnetv5.engine.defaults import add_fbnetv5_config, detectron2_config
from d2go_fbnetv5.engine.precision import DTYPES
from d2go_fbnetv5.engine.schedule import SCHEDULES
from d2go_fbnetv5.utils.errors import InputError

OPTIMIZERS = ("sgd", "adamw")


def check_choice(cfg: CfgNode, key: str, allowed: Sequence[Any]) -> None:
    """Raise a ValueError unless the key's value is one of those allowed."""
    value = get(cfg, key)
    if value not in allowed:
        raise InputError(f"{key} is {value!r}, allowed: {', '.join(map(str, allowed))}")


def check_range(
    cfg: CfgNode, key: str, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raise a ValueError unless low <= value <= high (low < value with `open_low`)."""
    value = get(cfg, key)
    if not low <= value <= high or (open_low and value == low):
        least = f"more than {low:g}" if open_low else f"{low:g} or more"
        most = "" if high == float("inf") else f" and at most {high:g}"
        raise InputError(f"{key} is {value!r}, allowed: {least}{most}")


def check_unread(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Raise a ValueError if a key or group that the kind of model at hand does not read was set."""
    defaults = detectron2_config()
    add_fbnetv5_config(defaults)
    for key in keys:
        changed = _changed(get(cfg, key), get(defaults, key), key)
        if changed:
            raise InputError(
                f"{changed} is {get(cfg, changed)!r}, which MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does "
                "not read; leave it out"
            )


def _changed(value: Any, default: Any, key: str) -> str:
    """The first key at or below ``key`` whose value is not the default, "" if there is none."""
    if not isinstance(default, CfgNode):
        return key if value != default else ""
    if default.is_new_allowed():
        return key if value else ""
    below = (_changed(value[name], default[name], f"{key}.{name}") for name in default)
    return next(filter(None, below), "")


def get(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def validate(cfg: CfgNode, world_size: int = 1) -> None:
    """Check everything that holds for all models.

    Args:
        cfg: scaled to `world_size` already.
        world_size: processes in all.

    Raises:
        ValueError: names the key, the value found, and what is allowed.
    """
    for check in (_solver, _input, _runtime):
        check(cfg)
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE, world_size)
    _batches(cfg, world_size)


def _solver(cfg: CfgNode) -> None:
    check_choice(cfg, "SOLVER.LR_SCHEDULER_NAME", SCHEDULES)
    check_choice(cfg, "SOLVER.WARMUP_METHOD", ("linear", "constant"))
    check_choice(cfg, "SOLVER.OPTIMIZER", OPTIMIZERS)
    check_choice(cfg, "SOLVER.AMP.PRECISION", tuple(DTYPES))
    check_choice(cfg, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("value", "norm", "full_model"))
    check_range(cfg, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0, open_low=True)
    for key in ("MAX_ITER", "CHECKPOINT_PERIOD", "CHECKPOINT_KEEP", "NUM_DECAYS"):
        check_range(cfg, f"SOLVER.{key}", 1)
    check_range(cfg, "SOLVER.IMS_PER_BATCH", 1, 2**17)
    check_range(cfg, "SOLVER.BASE_LR", 0, open_low=True)
    check_range(cfg, "SOLVER.BASE_LR_END", 0, cfg.SOLVER.BASE_LR)
    check_range(cfg, "SOLVER.MOMENTUM", 0, 1)
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise InputError("SOLVER.NESTEROV is True, allowed with SOLVER.MOMENTUM 0: False")
    betas = cfg.SOLVER.BETAS
    if len(betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise InputError(f"SOLVER.BETAS is {betas}, allowed: two numbers of 0 or more and below 1")
    check_range(cfg, "SOLVER.EPS", 0, open_low=True)
    check_range(cfg, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0, open_low=True)
    check_range(cfg, "SOLVER.GAMMA", 0, open_low=True)
    for key in ("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_EMBED"):
        check_range(cfg, f"SOLVER.{key}", 0)
    for key in ("WARMUP_FACTOR", "WARMUP_ITERS", "REFERENCE_WORLD_SIZE"):
        check_range(cfg, f"SOLVER.{key}", 0)
    check_range(cfg, "SOLVER.POLY_LR_POWER", 0, open_low=True)
    check_range(cfg, "SOLVER.POLY_LR_CONSTANT_ENDING", 0, 1)
    for entry in cfg.SOLVER.LR_MULTIPLIER_OVERWRITE:
        if not isinstance(entry, Mapping) or not all(_is_number(f) and f > 0 for f in entry.values()):
            raise InputError(
                f"SOLVER.LR_MULTIPLIER_OVERWRITE has {entry!r}, allowed: a mapping of a part of weights' names to a "
                "factor above 0"
            )
    steps = cfg.SOLVER.STEPS
    if not all(type(step) is int and step > 0 for step in steps) or list(steps) != sorted(set(steps)):
        raise InputError(f"SOLVER.STEPS is {steps}, allowed: rising iteration numbers from 1")
    check_range(cfg, "MODEL_EMA.DECAY", 0, 1 - 1e-12)


def _input(cfg: CfgNode) -> None:
    check_choice(cfg, "INPUT.FORMAT", ("RGB",))
    check_choice(cfg, "INPUT.RANDOM_FLIP", ("horizontal", "none"))
    sides = cfg.INPUT.MIN_SIZE_TRAIN
    if not sides or not all(map(_is_side, sides)):
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN is {sides}, allowed: one or more sides of 1 to {MOST_PIXELS} pixels"
        )
    check_range(cfg, "INPUT.MIN_SIZE_TEST", 0, MOST_PIXELS)
    if max(sides) >= cfg.INPUT.MAX_SIZE_TRAIN:
        raise InputError(
            f"INPUT.MAX_SIZE_TRAIN is {cfg.INPUT.MAX_SIZE_TRAIN}, allowed: more than INPUT.MIN_SIZE_TRAIN {sides}"
        )
    if cfg.INPUT.MIN_SIZE_TEST and not cfg.FBNETV5_DATA.CROP_SIZE_TEST:
        check_range(cfg, "INPUT.MAX_SIZE_TEST", cfg.INPUT.MIN_SIZE_TEST, open_low=True)
    if cfg.INPUT.CROP.ENABLED:
        check_choice(cfg, "INPUT.CROP.TYPE", ("absolute",))
        size = cfg.INPUT.CROP.SIZE
        if len(size) != 2 or not all(map(_is_side, size)):
            raise InputError(
                f"INPUT.CROP.SIZE is {size}, allowed: [height, width] in whole pixels, 1 to {MOST_PIXELS}"
            )
    check_range(cfg, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0, 1, open_low=True)
    check_range(cfg, "FBNETV5_DATA.COLOR_JITTER", 0, 1)
    check_range(cfg, "FBNETV5_DATA.CROP_SIZE_TEST", 0)
    if cfg.INPUT.MIN_SIZE_TEST:
        check_range(cfg, "FBNETV5_DATA.CROP_SIZE_TEST", 0, cfg.INPUT.MIN_SIZE_TEST)
    _classify_input(cfg)
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty, allowed: one or more names of data sets")
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"DATASETS.TEST is {cfg.DATASETS.TEST}, allowed: the name of one data set")
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = cfg.MODEL[key]
        if len(values) != 3 or not all(_is_number(v) and v >= 0 for v in values):
            raise InputError(f"MODEL.{key} is {values}, allowed: three numbers, for R, G, B in 0..255")
    if min(cfg.MODEL.PIXEL_STD) <= 0:
        raise InputError(f"MODEL.PIXEL_STD is {cfg.MODEL.PIXEL_STD}, allowed: more than 0")


def _classify_input(cfg: CfgNode) -> None:
    """The keys of the crop that only classifiers can be trained with."""
    area = cfg.FBNETV5_DATA.CROP_AREA
    check_range(cfg, "FBNETV5_DATA.RAND_AUGMENT", 0, 30)
    check_range(cfg, "FBNETV5_DATA.RANDOM_ERASE", 0, 1)
    if not area:
        for key in ("RAND_AUGMENT", "RANDOM_ERASE"):
            if cfg.FBNETV5_DATA[key]:
                raise InputError(
                    f"FBNETV5_DATA.{key} is {cfg.FBNETV5_DATA[key]}, allowed without FBNETV5_DATA.CROP_AREA: 0"
                )
        return
    if len(area) != 2 or not all(map(_is_number, area)) or not 0 < area[0] <= area[1] <= 1:
        raise InputError(
            f"FBNETV5_DATA.CROP_AREA is {area}, allowed: [], or two rising shares of more than 0 up to 1"
        )
    if not cfg.INPUT.CROP.ENABLED:
        raise InputError(
            "INPUT.CROP.ENABLED is False, allowed with FBNETV5_DATA.CROP_AREA: True, as INPUT.CROP.SIZE is the "
            "size of what is cropped"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_PIXELS


def _runtime(cfg: CfgNode) -> None:
    check_range(cfg, "DATALOADER.NUM_WORKERS", 0, 1024)
    check_range(cfg, "TEST.EVAL_PERIOD", 0)
    check_range(cfg, "TEST.PRECISE_BN.NUM_ITER", 1, 10_000)
    check_range(cfg, "WRITER_PERIOD", 1)
    check_range(cfg, "DISTRIBUTED.TIMEOUT_MINUTES", 0, 10080, open_low=True)
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR is empty, allowed: a folder")


def check_device(key: str, name: str, num_processes: int = 1) -> None:
    """ValueError unless a device's name, found under `key`, is one that torch finds here and all processes can use."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{key} is {name!r}, allowed: cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{key} is {name!r}, allowed: cpu, cuda")
    if device.type == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise InputError(f"{key} is {name!r}, but torch finds no such device here; allowed: cpu")
    if device.index is not None and num_processes > 1:
        raise InputError(
            f"{key} is {name!r}, allowed for {num_processes} processes: cuda, as each takes a GPU of its own"
        )
    if device.index is not None and device.index >= count:
        raise InputError(f"{key} is {name!r}, allowed: cuda, cuda:0 to cuda:{count - 1}, the GPUs here")


def _batches(cfg: CfgNode, world_size: int) -> None:
    total = cfg.SOLVER.IMS_PER_BATCH
    if total % world_size:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {total}, allowed: multiples of the {world_size} processes it is split over"
        )


def scale_to_world_size(cfg: CfgNode, world_size: int) -> None:
    """Scale a recipe that was written for SOLVER.REFERENCE_WORLD_SIZE processes, in place (0: leave it).

    As in Detectron2 and D2Go: the batch of each process stays, the rate follows the whole batch (linear scaling,
    for SGD) and iteration counts shrink so that as many images are seen.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return
    scale = world_size / reference
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
    if solver.OPTIMIZER == "sgd":
        solver.BASE_LR *= scale
        solver.BASE_LR_END *= scale
    solver.MAX_ITER = max(1, round(solver.MAX_ITER / scale))
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
    solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
    solver.CHECKPOINT_PERIOD = max(1, round(solver.CHECKPOINT_PERIOD / scale))
    cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
    scale_search_to_world_size(cfg, scale)
    solver.REFERENCE_WORLD_SIZE = world_size


def scale_search_to_world_size(cfg: CfgNode, scale: float) -> None:
    """The part of it that concerns our own keys, for hosts that scale the others themselves.

    Args:
        scale: processes now / processes that the recipe was written for.
    """
    cfg.SEARCH.ARCH_WARMUP_ITERS = round(cfg.SEARCH.ARCH_WARMUP_ITERS / scale)
