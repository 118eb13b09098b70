"""TorchScript files: scripted, so that they are right at every size, and saved as they are.

A detector's file calls torchvision's operators: an application links torchvision, or imports it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.formats.base import ExportSpec, Format, OpenedFile, Run, register_format
from d2go_fbnetv5.export.image_sizes import ImageSizes
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically


@register_format("torchscript")
class TorchScript(Format):
    """A program for torch alone; every size is dynamic."""

    suffix = ".pt"
    foreign = True

    def write(
        self, module: nn.Module, path: str | os.PathLike[str], spec: ExportSpec
    ) -> tuple[ImageSizes, dict[str, Any]]:
        buffer = io.BytesIO()  # to a file, torch ends the process where the disk is full
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit announces its removal
            torch.jit.save(torch.jit.script(module), buffer)
        write_atomically(path, buffer.getvalue())
        if getattr(module, "any_size", False):  # a smaller image is padded in the file, as the model does
            return ImageSizes((1, 1), None, 1), {}
        return ImageSizes((spec.least,) * 2, None), {}

    def read(
        self, path: str | os.PathLike[str], described: Mapping[str, Any], threshold: float | None
    ) -> Run:
        module = _load(path, torch.device("cpu"))
        if threshold is not None:
            module.least_score.fill_(threshold)

        @torch.no_grad()
        def run(image: Tensor) -> tuple[Tensor, ...]:
            found = module(image)
            return (found,) if isinstance(found, Tensor) else tuple(found)

        return run

    def open(self, path: str, device: torch.device) -> OpenedFile:
        return OpenedFile(_load(path, device).eval(), device)


def _load(path: str | os.PathLike[str], device: torch.device) -> torch.jit.ScriptModule:
    import torchvision  # noqa: F401 (its operators)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(os.fspath(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: torch cannot load it: {error}") from error
