"""Checks a configuration before anything is built or written: each key's rule, and those between keys."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.engine.keys import CROP_SIZE, DEVICE, KEYS
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown
from d2go_fbnetv5.utils.rules import between, check, get, one_of


def check_read(
    cfg: CfgNode, readers: Collection[str] | None, stored: Mapping[str, Any] | None = None
) -> None:
    """Refuse what is set and not read.

    Args:
        readers: what the run at hand is of the rows' `readers`; None for all.
        stored: the configuration of the run that goes on, which may have more set than is read.

    Raises:
        ValueError: names the key.
    """
    for key, row in KEYS.items():
        if readers is None or not row.readers or set(row.readers) & set(readers):
            continue
        value = _plain(get(cfg, key))
        if value not in (_plain(row.default), _stored(stored or {}, key)):
            raise InputError(
                f"{key} is set, to {shown(value)}, but nothing of MODEL.META_ARCHITECTURE "
                f"{cfg.MODEL.META_ARCHITECTURE} reads it; leave it out"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, CfgNode):
        return as_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _stored(stored: Mapping[str, Any], key: str) -> Any:
    value: Any = stored
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def validate(cfg: CfgNode, world_size: int = 1) -> None:
    """Check everything that holds for all kinds of runs.

    Args:
        cfg: scaled to `world_size` already.
        world_size: processes in all.

    Raises:
        ValueError: names the key, the value found, and what is allowed.
    """
    for key, row in KEYS.items():
        check(cfg, key, row.rule)
    _solver(cfg, world_size)
    _input(cfg)
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE, world_size)


def _solver(cfg: CfgNode, world_size: int) -> None:
    solver = cfg.SOLVER
    check(cfg, "SOLVER.BASE_LR_END", between(0, solver.BASE_LR))
    if solver.NESTEROV and not solver.MOMENTUM:
        raise InputError("SOLVER.NESTEROV is True, allowed with SOLVER.MOMENTUM 0: False")
    if solver.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise InputError(
            "CUDNN_BENCHMARK is True, allowed with SOLVER.DETERMINISTIC: False, as what is fastest differs"
        )
    if solver.IMS_PER_BATCH % world_size:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, allowed: multiples of the {world_size} processes it is "
            "split over"
        )
    if solver.IMS_PER_BATCH // world_size % solver.GRAD_ACCUM:
        raise InputError(
            f"SOLVER.GRAD_ACCUM is {solver.GRAD_ACCUM}, allowed: a divisor of the {solver.IMS_PER_BATCH // world_size} "
            "images that a process has of SOLVER.IMS_PER_BATCH, as the parts count alike"
        )


def _input(cfg: CfgNode) -> None:
    sides, options = cfg.INPUT.MIN_SIZE_TRAIN, cfg.FBNETV5_DATA
    if max(sides) >= cfg.INPUT.MAX_SIZE_TRAIN:
        raise InputError(
            f"INPUT.MAX_SIZE_TRAIN is {cfg.INPUT.MAX_SIZE_TRAIN}, allowed: more than INPUT.MIN_SIZE_TRAIN {sides}"
        )
    if cfg.INPUT.MIN_SIZE_TEST and options.CROP_SIZE_TEST:
        check(cfg, "FBNETV5_DATA.CROP_SIZE_TEST", between(0, cfg.INPUT.MIN_SIZE_TEST))
    elif cfg.INPUT.MIN_SIZE_TEST:
        check(cfg, "INPUT.MAX_SIZE_TEST", between(over=cfg.INPUT.MIN_SIZE_TEST))
    if cfg.INPUT.CROP.ENABLED:
        check(cfg, "INPUT.CROP.TYPE", one_of("absolute"))
        check(cfg, "INPUT.CROP.SIZE", CROP_SIZE)
    elif options.CROP_AREA:
        raise InputError(
            "INPUT.CROP.ENABLED is False, allowed with FBNETV5_DATA.CROP_AREA: True, as INPUT.CROP.SIZE is the "
            "size of what is cropped"
        )
    for key in ("RAND_AUGMENT", "RANDOM_ERASE"):
        if options[key] and not options.CROP_AREA:
            raise InputError(
                f"FBNETV5_DATA.{key} is {options[key]}, allowed without FBNETV5_DATA.CROP_AREA: 0"
            )


def check_device(key: str, name: str, num_processes: int = 1) -> None:
    """Raise a ValueError unless torch finds a device of this name, found under `key`, and all processes can use it."""
    if not DEVICE.holds(name):
        raise InputError(f"{key} is {name!r}, allowed: {DEVICE}")
    device = torch.device(name)
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


def scale_to_world_size(cfg: CfgNode, world_size: int) -> None:
    """Scale a configuration that was written for SOLVER.REFERENCE_WORLD_SIZE processes, in place (0: leave it).

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
    """Scale our own keys alone, for trainers that scale the others themselves.

    Args:
        scale: processes now / processes that the configuration was written for.
    """
    cfg.SEARCH.ARCH_WARMUP_ITERS = round(cfg.SEARCH.ARCH_WARMUP_ITERS / scale)
