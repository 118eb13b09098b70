"""TorchScript files: scripted, so that they are right at every size, and saved as they are.

A detector's file calls torchvision's operators: an application links torchvision, or imports it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.image_sizes import ImageSizes, guarded
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically

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
    buffer = io.BytesIO()  # to a file, torch ends the process where the disk is full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its removal
        torch.jit.save(torch.jit.script(module), buffer)
    write_atomically(path, buffer.getvalue())
    any_size = getattr(module, "any_size", False)  # a smaller image is padded in the file, as the model does
    sizes = ImageSizes((1, 1), None, 1) if any_size else ImageSizes((least, least), None)
    return {"dynamic": True, "image_sizes": sizes.to_json(), "int8": False}


def load(
    path: str | os.PathLike[str],
    described: Mapping[str, Any] | None = None,
    threshold: float | None = None,
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of a 1 x 3 x H x W image.

    Args:
        described: model.json of the file; with it, images of other sizes are refused with what is allowed.
        threshold: least score of a detection, in place of the file's own.

    Raises:
        InputError: torch cannot load the file, or ``described`` is wrong.
    """
    import torchvision  # noqa: F401 (its operators)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(os.fspath(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: torch cannot load it: {error}") from error

    if threshold is not None:
        module.least_score.fill_(threshold)

    @torch.no_grad()
    def run(image: Tensor) -> tuple[Tensor, ...]:
        found = module(image)
        return found if isinstance(found, tuple) else (found,)

    return run if described is None else guarded(run, described)
