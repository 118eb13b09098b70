"""Refuses a run under Detectron2 or D2Go before its first step."""

from __future__ import annotations

from detectron2.utils import comm
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.engine.recipes.models import class_names
from d2go_fbnetv5.engine.validate import check_read, validate
from d2go_fbnetv5.plugins.detectron2.datasets import read_by_us
from d2go_fbnetv5.plugins.detectron2.meta_arch import OUR_MODELS, dataset_info
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import get

OUR_META_ARCHITECTURES = (*OUR_MODELS, "MultitaskSearch")


def check_run(cfg: CfgNode) -> None:
    """Check a configuration as our own trainer does, if its DATASETS are read by us.

    Raises:
        ValueError: an impossible value.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    if not read_by_us(cfg):
        return
    if cfg.SEED < 0:
        raise InputError(
            f"SEED is {cfg.SEED}, allowed under Detectron2 and D2Go: 0 or more, so that a run can be resumed"
        )
    if kind in OUR_META_ARCHITECTURES:
        check_read(cfg, get_recipe(kind).readers)
    validate(cfg, comm.get_world_size())
    if kind in OUR_META_ARCHITECTURES:
        get_recipe(kind).validate(cfg, comm.get_world_size())
    if kind == "LiteRCNN":
        class_names(cfg, dataset_info(cfg))  # the other models ask for theirs when they are built


def check_detectron2_alone(cfg: CfgNode) -> None:
    """Refuse what Detectron2's own trainer would pass over: keys of the other trainers, and Detectron2's that
    `build_optimizer` has no part for.

    Raises:
        ValueError: such a key is set; the message names what is allowed.
    """
    allowed = {
        "MODEL_EMA.ENABLED": (False,),
        "SOLVER.BIAS_LR_FACTOR": (1.0,),
        "SOLVER.DETERMINISTIC": (False,),
        "SOLVER.GRAD_ACCUM": (1,),
        "SOLVER.WEIGHT_DECAY_BIAS": (None,),
    }
    if cfg.SOLVER.AMP.ENABLED:
        allowed["SOLVER.AMP.PRECISION"] = ("float16",)
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        allowed["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"] = ("value", "norm")
    if cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch" and comm.get_world_size() > 1:
        raise InputError(
            f"a search by {comm.get_world_size()} processes, allowed in Detectron2's trainer: 1; "
            "d2go_fbnetv5.train_net and D2Go's runner take more"
        )
    for key, values in allowed.items():
        if get(cfg, key) not in values:
            raise InputError(
                f"{key} is {get(cfg, key)!r}, allowed in Detectron2's trainer: {', '.join(map(str, values))} "
                "(d2go_fbnetv5.train_net and D2Go's runner have more)"
            )
