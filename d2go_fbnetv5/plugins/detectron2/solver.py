"""The optimizer of a search and of a model by SOLVER, and that a search is not trained by another one."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakSet

import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from d2go_fbnetv5.engine import build
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.utils.errors import InputError


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW by SOLVER, as our own trainer has it, with Detectron2's gradient clipping.

    A search's probabilities are a group of their own: the rate BASE_LR * SEARCH.ARCH_LR_FACTOR, no weight decay, no
    momentum.
    """
    is_search = isinstance(model, MultitaskSearch)
    groups = build.build_search_groups(cfg, model) if is_search else build.build_param_groups(cfg, model)
    return maybe_add_gradient_clipping(cfg, build.build_optimizer(cfg, groups))


class SearchGuard:
    """Sees to it that a search is trained as one; what it refuses would search wrongly without a word.

    Args:
        search: whose probabilities it guards.
        base_lr: SOLVER.BASE_LR.
        arch_lr_factor: SEARCH.ARCH_LR_FACTOR; None if nobody said how the rates should differ.
    """

    def __init__(
        self, search: MultitaskSearch, base_lr: float = 0.0, arch_lr_factor: float | None = None
    ) -> None:
        self.search, self.base_lr, self.arch_lr_factor = search, base_lr, arch_lr_factor
        self.stepped = False  # by an optimizer, since the last projection
        _guards.add(self)

    def before_forward(self) -> None:
        """Raise an InputError if the probabilities were not projected after the last optimizer step."""
        if self.stepped:
            raise InputError(
                "the search's after_step() was not called after the optimizer's step: FBNetV5Trainer of "
                "d2go_fbnetv5.plugins.detectron2 calls it, in a trainer of your own a hook's after_step does"
            )

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise an InputError if the optimizer treats the probabilities as weights."""
        probs = self.search.distribution.probs
        group = next((g for g in optimizer.param_groups if any(p is probs for p in g["params"])), None)
        if group is None:
            return
        self.stepped = True
        others = [_rate(other) for other in optimizer.param_groups if other is not group]
        wrong = [
            f"{name} {value:g}, allowed: 0"
            for name, value in (
                ("weight decay", group.get("weight_decay", 0.0)),
                ("momentum", _momentum(group)),
            )
            if value
        ]
        if not self._is_right(_rate(group), others):
            wrong.append(
                f"the rate {_rate(group):g}, allowed: the weights' times SEARCH.ARCH_LR_FACTOR {self.arch_lr_factor:g}"
            )
        if wrong:
            raise InputError(
                f"the optimizer gives the search's probabilities {' and '.join(wrong)}: FBNetV5Trainer of "
                "d2go_fbnetv5.plugins.detectron2, or its build_optimizer(cfg, model), makes the right one"
            )

    def _is_right(self, rate: float, others: list[float]) -> bool:
        if self.arch_lr_factor is None:
            return True
        return any(
            math.isclose(rate, base * self.arch_lr_factor, rel_tol=1e-4) for base in (self.base_lr, *others)
        )


def _rate(group: dict[str, Any]) -> float:
    """Before the schedule."""
    return float(group.get("initial_lr", group["lr"]))


def _momentum(group: dict[str, Any]) -> float:
    return group["betas"][0] if "betas" in group else group.get("momentum", 0.0)


_guards: WeakSet[SearchGuard] = WeakSet()


def _before_any_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for guard in tuple(_guards):
        guard.before_optimizer_step(optimizer)


register_optimizer_step_pre_hook(_before_any_step)
