"""torch.compile for networks whose topology changes from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from d2go_fbnetv5.arch import Backbone, Supernet
from d2go_fbnetv5.utils.errors import InputError

Backend = str | Callable[..., Any]

# Dynamo counts what it compiled by the code of `forward`, which all blocks share, and gives up at 8 by default:
# 4 partitions and 4 kinds of blocks, each for training and evaluation, and for a second batch size.
_MOST_VARIANTS = 64


def compile_blocks(model: nn.Module, backend: Backend = "inductor") -> int:
    """Compile, when they first run, each partition and each searchable block of the networks in a model, in place.

    What a topology changes lies between blocks and is not compiled, so that another topology compiles nothing anew.
    Blocks of the same path share what was compiled for one of them. The names of weights stay as they are.

    Args:
        backend: of ``torch.compile``.

    Returns:
        how many partitions and blocks.

    Raises:
        ValueError: the model has no such network, or the backend does not work on this machine.
    """
    networks = [module for module in model.modules() if isinstance(module, (Supernet, Backbone))]
    if not networks:
        raise InputError("there are no blocks of the search space in this model to be compiled")
    _try(backend, next(networks[0].parameters()).device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
    parts = [
        part
        for network in networks
        for parts in (network.stage0, *network.stages.children())
        for part in parts.children()
    ]
    for part in parts:
        part.compile(backend=backend)
    return len(parts)


def _try(backend: Backend, device: torch.device) -> None:
    try:
        torch.compile(_add_one, backend=backend)(torch.zeros(4, device=device))
    except Exception as error:  # a missing compiler, missing headers, an old GPU: each its own exception
        root = getattr(error, "inner_exception", error)  # what Dynamo wraps
        cause = next((line for line in str(root).splitlines() if line.strip()), type(root).__name__)
        raise InputError(
            f"torch.compile does not work on this machine with {device.type}, which needs a C++ compiler and Python's "
            f"headers, and Triton on a GPU: {cause.strip()[:200]}"
        ) from error


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
