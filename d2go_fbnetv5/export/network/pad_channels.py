"""Channels in multiples of 4 for ONNX Runtime, whose blocked kernels (NCHWc) take no others."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone

_STEP = 4
_LEAST = 16  # with fewer, a convolution reads its input in the plain layout


def pad_channels(backbone: FlatBackbone) -> None:
    """Adds channels that are zero to every inner feature of a folded backbone, in place; its outputs stay as they are.

    ONNX Runtime runs a convolution of 18 channels with plain kernels, reorders its input and output and computes its
    hard-swish apart. Its blocked kernels pad to 16 channels anyway, so that the zeros cost nothing.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            _pad_convolution(module)
        elif isinstance(weight := getattr(module, "weight", None), Tensor):  # a fusion's
            module.weight = _padded(weight, 1)
    backbone.padded = True


def _pad_convolution(conv: nn.Conv2d) -> None:
    depthwise = conv.groups > 1
    reads_image = conv.in_channels == 3
    weight = _padded(conv.weight, 0 if depthwise or reads_image else 1)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        conv.bias = nn.Parameter(F.pad(conv.bias, (0, len(weight) - len(conv.bias))), requires_grad=False)
    conv.out_channels = len(weight)
    if depthwise:
        conv.groups = conv.in_channels = len(weight)
    else:
        conv.in_channels = weight.shape[1]


def _padded(weight: Tensor, inputs: int) -> Tensor:
    """Out x in x k x k with more outputs and, if ``inputs`` is 1, more inputs."""
    more_out, more_in = (_channels(count) - count for count in weight.shape[:2])
    return F.pad(weight.detach(), (0, 0, 0, 0, 0, inputs * more_in, 0, more_out))


def _channels(count: int) -> int:
    return max(_LEAST, -(-count // _STEP) * _STEP)
