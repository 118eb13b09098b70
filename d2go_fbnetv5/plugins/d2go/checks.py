"""Refuses, before the first step, what D2Go's keys say and our models or data sets cannot follow."""

from __future__ import annotations

from d2go.runner import GeneralizedRCNNRunner
from fvcore.common.config import CfgNode

from d2go_fbnetv5.plugins.detectron2.checks import OUR_META_ARCHITECTURES
from d2go_fbnetv5.plugins.detectron2.datasets import read_by_us
from d2go_fbnetv5.utils.errors import InputError


def check_d2go(cfg: CfgNode) -> None:
    """Check QUANTIZATION for models of ours, D2GO_DATA.AUG_OPS for sets of ours, and what D2Go does not read.

    Raises:
        ValueError: the message names the key and what is allowed.
    """
    for key, value, allowed in (
        ("FLOAT32_PRECISION", cfg.FLOAT32_PRECISION, ""),
        ("SOLVER.GRAD_ACCUM", cfg.SOLVER.GRAD_ACCUM, 1),
    ):
        if value != allowed:
            raise InputError(f"{key} is {value!r}, allowed in D2Go, which does not read it: {allowed!r}")
    if cfg.MODEL.META_ARCHITECTURE in OUR_META_ARCHITECTURES:
        _check_quantization(cfg)
    if read_by_us(cfg):
        _check_augmentation(cfg)


def _check_quantization(cfg: CfgNode) -> None:
    kind = cfg.MODEL.META_ARCHITECTURE
    if not cfg.QUANTIZATION.EAGER_MODE:
        raise InputError(f"QUANTIZATION.EAGER_MODE is False, allowed for {kind}: True")
    if not cfg.QUANTIZATION.QAT.ENABLED:
        return
    if kind in ("MultitaskSearch", "LiteDepth", "SeveralHeads"):
        what = "a search" if kind == "MultitaskSearch" else f"a {kind}"
        raise InputError(f"QUANTIZATION.QAT.ENABLED is True, allowed for {what}: False")
    if cfg.MODEL_EMA.ENABLED:
        raise InputError(
            "MODEL_EMA.ENABLED is True, allowed with QUANTIZATION.QAT.ENABLED: False, for ranges cannot be averaged"
        )


def _check_augmentation(cfg: CfgNode) -> None:
    defaults = GeneralizedRCNNRunner.get_default_cfg().D2GO_DATA.AUG_OPS
    for name, value in cfg.D2GO_DATA.AUG_OPS.items():
        if list(value) != list(defaults[name]):
            raise InputError(
                f"D2GO_DATA.AUG_OPS.{name} is {list(value)}, allowed for {', '.join(cfg.DATASETS.TRAIN)}: the "
                "default; samples, whose labels move with their image, are transformed by INPUT and FBNETV5_DATA"
            )
