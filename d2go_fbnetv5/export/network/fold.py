"""Folds into the convolutions what needs no operator of its own at inference: batch norm, a gate's constants."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d2go_fbnetv5.arch.blocks import ConvBNAct, InvertedResidual

Module = TypeVar("Module", bound=nn.Module)


def folded(module: Module) -> Module:
    """A copy in evaluation mode, without gradients, whose every `ConvBNAct` is a convolution with bias and the
    activation, and whose hard-sigmoid gates are a ReLU6. The original is left as it is, and what is folded already
    stays so."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for block in module.modules():
        if isinstance(block, ConvBNAct) and hasattr(block, "bn"):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn).requires_grad_(False)
            del block.bn
    for block in module.modules():
        if isinstance(block, InvertedResidual) and block.se and isinstance(block.se.gate, nn.Hardsigmoid):
            _fold_gate(block)
    return module


@torch.no_grad()
def _fold_gate(block: InvertedResidual) -> None:
    """hard_sigmoid(x) = ReLU6(x + 3) / 6: the 3 goes into the convolution before, the 6 into the one after.

    ExecuTorch spells a hard-sigmoid out as addition, clamp and division with transposed copies around, seven small
    operators for each gate; XNNPACK computes a ReLU6 within the convolution.
    """
    se = block.se
    if se is None or se.expand.bias is None:
        return
    se.expand.bias += 3
    se.gate = nn.ReLU6()
    block.pwl.conv.weight /= 6
