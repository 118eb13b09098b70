"""PyTorch itself, without a file: what benchmarks and latency tables have beside the files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.formats.base import Format, register_format


@register_format("eager")
class Eager(Format):
    """A module as it is, in the layout of the models' own training and evaluation."""

    parts = True

    def compiled(self, module: nn.Module, image: Tensor) -> Callable[[], Any]:
        """As `Format.compiled`; it runs without gradients, on as many threads as torch has.

        The module itself is changed: its weights stay in that layout.
        """
        module = module.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: module(image))
