"""Adds our training's hooks to D2Go's, by its registry of hooks."""

from d2go.modeling import ema
from d2go.runner import TRAINER_HOOKS_REGISTRY
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from d2go_fbnetv5.plugins.d2go.quantization import join_ranges
from d2go_fbnetv5.plugins.detectron2.hooks import ProjectionHook, SearchRecordHook, SeedHook
from d2go_fbnetv5.utils.ranks import average_batch_norm


@TRAINER_HOOKS_REGISTRY.register()
def add_fbnetv5_hooks(hooks: list[HookBase], cfg: CfgNode) -> None:
    """For configurations that have our keys, in front of D2Go's hooks: these average and save what ours change."""
    if "SEARCH" not in cfg:
        return
    ours: list[HookBase] = [SeedHook(cfg.SEED)] if cfg.SEED >= 0 else []
    if cfg.MODEL.META_ARCHITECTURE == "MultitaskSearch":
        ours += [ProjectionHook(), SearchRecordHook(cfg.OUTPUT_DIR, cfg.WRITER_PERIOD)]
    if comm.get_world_size() > 1:
        last_observed = cfg.QUANTIZATION.QAT.DISABLE_OBSERVER_ITER
        ours.append(StatisticsHook(cfg.SOLVER.CHECKPOINT_PERIOD, last_observed))
    hooks[:0] = ours


class StatisticsHook(HookBase):
    """Gives every process the mean over processes of the batch-norm statistics, and all processes' ranges of int8,
    before a checkpoint is written, which holds those of process 0: a run that is resumed goes on as it would have.

    Args:
        period: of checkpoints, in steps.
        observed: steps after which ranges rest, and have to be everyone's.
    """

    def __init__(self, period: int, observed: int) -> None:
        self.period, self.observed = period, observed

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done not in (self.observed, self.trainer.max_iter):
            return
        join_ranges(self.trainer.model)
        average_batch_norm(self.trainer.model)
        for model in self.trainer.model.modules():
            if hasattr(model, "ema_state"):  # its last update, a weighted sum, is still to come
                with ema.apply_model_ema_and_restore(model):
                    average_batch_norm(model)
                    model.ema_state.save_from(model, str(model.ema_state.device))
