"""Learning-rate schedules: the multiplier of the base rate as a pure function of progress in [0, 1)."""

import logging
from collections.abc import Sequence

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    PolynomialDecayParamScheduler,
    StepWithFixedGammaParamScheduler,
)

from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR")


def build_schedule(
    name: str,
    max_iter: int,
    *,
    steps: Sequence[int] = (),
    gamma: float = 0.1,
    num_decays: int = 3,
    end_factor: float = 0.0,
    power: float = 0.9,
    constant_ending: float = 0.0,
    warmup_iters: int = 0,
    warmup_factor: float = 0.001,
    warmup_method: str = "linear",
) -> ParamScheduler:
    """One of Detectron2's schedules, by its name there.

    Args:
        name: of `SCHEDULES`.
        steps: iterations at which WarmupMultiStepLR multiplies the rate by `gamma`; those not below `max_iter`
            are left out with a warning, as in Detectron2.
        num_decays: how often WarmupStepWithFixedGammaLR does it, at equal distances.
        end_factor: WarmupCosineLR's last multiplier.
        power: WarmupPolyLR is (1 - progress) ** power,
        constant_ending: and no less than this.
        warmup_iters: iterations over which the multiplier rises from `warmup_factor`.
        warmup_method: "linear" or "constant".

    Raises:
        ValueError: unknown names.
    """
    if name == "WarmupMultiStepLR":
        used = [step for step in steps if step < max_iter]
        if len(used) < len(steps):
            logger.warning(
                "SOLVER.STEPS %s: those not below SOLVER.MAX_ITER %d are ignored", tuple(steps), max_iter
            )
        schedule: ParamScheduler
        if used:
            values = [gamma**k for k in range(len(used) + 1)]
            schedule = MultiStepParamScheduler(values=values, milestones=used, num_updates=max_iter)
        else:
            schedule = ConstantParamScheduler(1.0)
    elif name == "WarmupCosineLR":
        schedule = CosineParamScheduler(1.0, end_factor)
    elif name == "WarmupStepWithFixedGammaLR":
        schedule = StepWithFixedGammaParamScheduler(1.0, num_decays, gamma, max_iter)
    elif name == "WarmupPolyLR":
        schedule = _Floor(PolynomialDecayParamScheduler(1.0, power), constant_ending)
    else:
        raise InputError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}, allowed: {', '.join(SCHEDULES)}")
    if warmup_iters <= 0:
        return schedule
    length = min(warmup_iters / max_iter, 1.0)
    start = warmup_factor * schedule(0.0)
    if warmup_method == "linear":
        # The end of the warm-up is one step short of 1.0, where a schedule need not be defined.
        warmup: ParamScheduler = LinearParamScheduler(
            start, schedule(min(length, 1.0 - 1.0 / (max_iter + 1)))
        )
    elif warmup_method == "constant":
        warmup = ConstantParamScheduler(start)
    else:
        raise InputError(f"SOLVER.WARMUP_METHOD is {warmup_method!r}, allowed: linear, constant")
    if length == 1.0:
        return warmup
    return CompositeParamScheduler([warmup, schedule], [length, 1 - length], ["rescaled", "fixed"])


class _Floor(ParamScheduler):
    """Another schedule, but never below `least`."""

    def __init__(self, schedule: ParamScheduler, least: float) -> None:
        self.schedule, self.least = schedule, least

    def __call__(self, where: float) -> float:
        return max(self.schedule(where), self.least)
