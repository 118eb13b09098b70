"""Building blocks in FBNetV3's notation (Appendix A of the paper).

An operator's name says what it is: ``conv_k3_hs`` is a 3 x 3 convolution with batch norm and hard-swish,
``ir_k5_sehsig_hs`` an inverted residual with a 5 x 5 depthwise convolution, squeeze-and-excitation gated by
a hard-sigmoid, and hard-swish; ``ir_pool_hs`` is FBNetV3's pooling head ("MBPool").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError

_CONV_OR_IR = re.compile(r"(?P<kind>conv|ir)_k(?P<kernel>[1357])(?P<se>_se|_sehsig)?(?P<hs>_hs)?")
_POOL = re.compile(r"ir_pool(?P<hs>_hs)?")


@dataclass(frozen=True)
class OpSpec:
    """A parsed operator name: ``kind`` is "conv" or "ir", ``se`` None, "sigmoid" or "hard_sigmoid"."""

    kind: str
    kernel_size: int
    se: str | None
    act: str


def parse_op(op: str) -> OpSpec:
    """Parses an operator name such as ``ir_k5_sehsig_hs``.

    Raises:
        ValueError: the name is not of the notation, or asks a plain convolution for squeeze-and-excitation.
    """
    match = _CONV_OR_IR.fullmatch(op)
    if match is None or (match["kind"] == "conv" and match["se"]):
        raise InputError(
            f"unknown operator {op!r}: allowed are conv_k{{1,3,5,7}}[_hs] and ir_k{{1,3,5,7}}[_se|_sehsig][_hs]"
        )
    se = {None: None, "_se": "sigmoid", "_sehsig": "hard_sigmoid"}[match["se"]]
    return OpSpec(match["kind"], int(match["kernel"]), se, "hs" if match["hs"] else "relu")


def parse_pool_op(op: str) -> str:
    """Returns the activation ("hs" or "relu") of a pooling operator, ``ir_pool`` or ``ir_pool_hs``."""
    match = _POOL.fullmatch(op)
    if match is None:
        raise InputError(f"unknown pooling operator {op!r}: allowed are ir_pool and ir_pool_hs")
    return "hs" if match["hs"] else "relu"


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``value`` (ties away from zero), at least ``divisor`` and never
    more than 5% below ``value``: the width rule of the FBNet family."""
    if divisor <= 1 or (value % divisor == 0 and value >= divisor):
        return int(value)
    rounded = max(1, int(value / divisor + 0.5)) * divisor
    return rounded + divisor if rounded < 0.95 * value else rounded


def build_activation(act: str | None) -> nn.Module:
    """ "hs" (hard-swish), "relu" or None (identity)."""
    if act is None:
        return nn.Identity()
    if act == "hs":
        return nn.Hardswish()
    if act == "relu":
        return nn.ReLU()
    raise InputError(f"unknown activation {act!r}: allowed are 'hs', 'relu' and None")


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: N x in x H x W -> N x out x H' x W'.

    ``padding`` None keeps the size at stride 1 (``kernel_size // 2``).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        act: str | None = "hs",
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        if act is not None:
            self.act = build_activation(act)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


def zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the bias of a layer, if it has one, to zero."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels' means; the shape is unchanged.

    ``gate`` is "sigmoid" or "hard_sigmoid".
    """

    def __init__(self, channels: int, squeezed: int, gate: str = "hard_sigmoid", act: str = "hs") -> None:
        super().__init__()
        gates = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}
        if gate not in gates:
            raise InputError(f"unknown gate {gate!r}: allowed are {sorted(gates)}")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = build_activation(act)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gates[gate]()
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out", nonlinearity="relu")
        zero_bias(self.reduce)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """MobileNetV2's block as FBNetV3 uses it: expand (1 x 1), depthwise, squeeze-and-excite, project (1 x 1).

    The expansion is left out where it would change nothing (``expansion`` 1). The squeeze has a quarter of
    the *input's* channels. Both widths are rounded to multiples of ``divisor``. With equal channels and
    stride 1 the input is added, and the last batch norm starts at zero, so that a fresh block is the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expansion: float = 6,
        se: str | None = None,
        act: str = "hs",
        padding: int | None = None,
        divisor: int = 8,
    ) -> None:
        super().__init__()
        mid = make_divisible(in_channels * expansion, divisor)
        self.pw = ConvBNAct(in_channels, mid, 1, act=act) if mid != in_channels else None
        self.dw = ConvBNAct(mid, mid, kernel_size, stride, padding, groups=mid, act=act)
        self.se = (
            SqueezeExcite(mid, make_divisible(int(mid * 0.25 / expansion), divisor), se, act) if se else None
        )
        self.pwl = ConvBNAct(mid, out_channels, 1, act=None)
        self.residual = stride == 1 and in_channels == out_channels
        if self.residual:
            nn.init.zeros_(self.pwl.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.pw is None else self.pw(x)
        y = self.dw(y)
        if self.se is not None:
            y = self.se(y)
        y = self.pwl(y)
        return x + y if self.residual else y


class MBPool(nn.Module):
    """FBNetV3's pooling head (``ir_pool_hs``): expand, pool to 1 x 1, project without batch norm.

    N x in x H x W -> N x out x 1 x 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1984,
        expansion: float = 6,
        act: str = "hs",
        divisor: int = 8,
    ) -> None:
        super().__init__()
        mid = make_divisible(in_channels * expansion, divisor)
        self.pw = ConvBNAct(in_channels, mid, 1, act=act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pwl = nn.Conv2d(mid, out_channels, 1, bias=False)
        self.act = build_activation(act)
        nn.init.kaiming_normal_(self.pwl.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pwl(self.pool(self.pw(x))))


def build_block(
    op: str,
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    expansion: float = 1,
    padding: int | None = None,
    divisor: int = 8,
) -> nn.Module:
    """Builds one layer from its operator name: N x in x H x W -> N x out x H/stride x W/stride."""
    spec = parse_op(op)
    if spec.kind == "conv":
        return ConvBNAct(in_channels, out_channels, spec.kernel_size, stride, padding, act=spec.act)
    return InvertedResidual(
        in_channels, out_channels, spec.kernel_size, stride, expansion, spec.se, spec.act, padding, divisor
    )
