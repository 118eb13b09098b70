"""The optimizer's groups of a search: weights, norms, and the probabilities at a rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(
    model: nn.Module,
    probs: nn.Parameter,
    lr: float,
    arch_lr_factor: float,
    weight_decay: float,
    weight_decay_norm: float | None,
) -> list[dict[str, Any]]:
    """Groups for ``torch.optim.SGD``, see `Search.param_groups`.

    Args:
        model: whose trainable parameters are grouped.
        probs: that parameter of it which holds the probabilities.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    norm_ids = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    rest = [p for p in model.parameters() if p is not probs and p.requires_grad]
    groups = [
        ("weights", [p for p in rest if id(p) not in norm_ids], weight_decay),
        (
            "norms",
            [p for p in rest if id(p) in norm_ids],
            weight_decay if weight_decay_norm is None else weight_decay_norm,
        ),
    ]
    arch = {
        "name": "arch",
        "params": [probs],
        "lr": lr * arch_lr_factor,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "nesterov": False,
    }
    weights = [
        {"name": name, "params": params, "lr": lr, "weight_decay": decay}
        for name, params, decay in groups
        if params
    ]
    return [*weights, arch]
