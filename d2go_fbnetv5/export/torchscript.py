"""TorchScript files: scripted, so that they are right at every size, and saved as they are.

A detector's file calls torchvision's operators: an application links torchvision, or imports it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.image_sizes import STEP
from d2go_fbnetv5.utils.errors import InputError

SUFFIX = ".pt"
PACKAGES: tuple[str, ...] = ()  # torch and torchvision are there
FIXED_SIZE = False


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    size: tuple[int, int],
    least: int,
    outputs: tuple[str, ...],
    calibration: Iterable[Tensor] | None = None,
    fixed: bool = False,
) -> dict[str, Any]:
    """As `onnx.export`; every size is dynamic, whatever ``fixed`` is (FIXED_SIZE)."""
    if calibration is not None:
        raise InputError("int8 is for the format executorch, found torchscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its removal
        torch.jit.script(module).save(os.fspath(path))
    step = {} if getattr(module, "any_size", False) else {"multiple_of": STEP}
    return {"dynamic": True, "image_sizes": {"min": [least] * 2, **step}, "int8": False}


def load(
    path: str | os.PathLike[str], described: Mapping[str, Any] | None = None
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of a 1 x 3 x H x W image; ``described`` is not needed here.

    Raises:
        ValueError: torch cannot load the file.
    """
    import torchvision  # noqa: F401 (its operators)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(os.fspath(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: torch cannot load it: {error}") from error

    @torch.no_grad()
    def run(image: Tensor) -> tuple[Tensor, ...]:
        found = module(image)
        return found if isinstance(found, tuple) else (found,)

    return run
