"""The optimizer's groups: weights, norms and embeddings by decay and rate, and a search's probabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "norms": (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm),
    "embeddings": (nn.Embedding,),
}


def weight_groups(
    model: nn.Module,
    lr: float,
    decays: Mapping[str, float],
    factors: Mapping[str, float] | None = None,
    left_out: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Return a model's trainable weights in groups, each with its rate and decay.

    Args:
        decays: of "weights", "norms" and "embeddings".
        factors: of the rate, by a part of a weight's name; of several that fit, the last one counts.
        left_out: parameters that are in none of these groups.
    """
    seen = {id(parameter) for parameter in left_out}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {(kind, 1.0): [] for kind in decays}
    for prefix, module in model.named_modules():
        kind = next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "weights")
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                fitting = [factor for part, factor in (factors or {}).items() if part in name]
                groups.setdefault((kind, [1.0, *fitting][-1]), []).append(parameter)
    return [
        {
            "name": kind if factor == 1.0 else f"{kind} x {factor:g}",
            "params": params,
            "lr": lr * factor,
            "weight_decay": decays[kind],
        }
        for (kind, factor), params in groups.items()
        if params
    ]


def arch_group(probs: nn.Parameter, lr: float) -> dict[str, Any]:
    """Return the group of a search's probabilities for ``torch.optim.SGD``: no momentum, no decay (Appendix F.1)."""
    return {
        "name": "arch",
        "params": [probs],
        "lr": lr,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "nesterov": False,
    }
