"""An exponential moving average of a model's weights, on torch's AveragedModel."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import unwrap


class EMA(AveragedModel):
    """After each step, average = decay * average + (1 - decay) * model, starting from the model as it was given.

    Args:
        model: not in DistributedDataParallel.
        decay: in [0, 1).
        include_buffers: whether floating-point buffers (batch-norm statistics) are averaged; others are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, include_buffers: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise InputError(f"MODEL_EMA.DECAY is {decay}, allowed: 0 <= decay < 1")
        super().__init__(model, use_buffers=include_buffers)
        self.decay = decay
        self.requires_grad_(False)
        self.n_averaged.fill_(1)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model as it is now, without a wait for the device, which torch's own has at each call."""
        kinds: dict[tuple[bool, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for named in ("parameters", "buffers"):
            averaged = named == "parameters" or self.use_buffers
            pairs = zip(getattr(self.module, named)(), getattr(model, named)(), strict=True)
            for average, value in pairs:
                kind = (averaged and average.is_floating_point(), average.dtype)
                averages, values = kinds.setdefault(kind, ([], []))
                averages.append(average.detach())
                values.append(value.detach())
        for (averaged, _), (averages, values) in kinds.items():
            if averaged:
                torch._foreach_lerp_(averages, values, 1.0 - self.decay)
            else:
                torch._foreach_copy_(averages, values)
        self.n_averaged += 1


class EMAHook(Hook):
    """Updates the average after each step; comes after everything that changes weights."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def after_step(self, loop: TrainLoop) -> None:
        self.ema.update_parameters(unwrap(loop.model))
