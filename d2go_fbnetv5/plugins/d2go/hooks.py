"""What our training adds to D2Go's, by its registry of hooks."""

from d2go.runner import TRAINER_HOOKS_REGISTRY
from detectron2.engine import HookBase
from fvcore.common.config import CfgNode

from d2go_fbnetv5.plugins.detectron2.hooks import ProjectionHook, SearchRecordHook, SeedHook


@TRAINER_HOOKS_REGISTRY.register()
def add_fbnetv5_hooks(hooks: list[HookBase], cfg: CfgNode) -> None:
    """For configurations that have our keys, in front of D2Go's hooks: these average and save what ours change."""
    if "SEARCH" not in cfg:
        return
    ours: list[HookBase] = [SeedHook(cfg.SEED)] if cfg.SEED >= 0 else []
    if cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch":
        ours += [ProjectionHook(), SearchRecordHook(cfg.OUTPUT_DIR, cfg.WRITER_PERIOD)]
    hooks[:0] = ours
