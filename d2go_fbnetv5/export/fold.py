"""Batch norm disappears into the convolution before it."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d2go_fbnetv5.arch.blocks import ConvBNAct

Module = TypeVar("Module", bound=nn.Module)


def folded(module: Module) -> Module:
    """A copy in evaluation mode, without gradients, whose every `ConvBNAct` is a convolution with bias and the
    activation. The original is left as it is."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for block in module.modules():
        if isinstance(block, ConvBNAct):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn).requires_grad_(False)
            del block.bn
    return module
