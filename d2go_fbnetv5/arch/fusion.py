"""The parameter-free, almost compute-free fusion of paths (Appendix B).

Appendix B fixes the arithmetic. The operators are chosen to be fast and exportable: strided slices, ``cat``
and sums; and the step that shrinks the data comes first (to a lower resolution: slice, then repeat channels;
to a higher one: average channels, then enlarge).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError


def _take(
    x: Tensor, channels: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
) -> Tensor:
    """Some of the channels, rows and columns of N x C x H x W, with a gradient that has the layout of ``x``.

    Autograd makes the gradient of a slice contiguous. One that is not channels last puts the whole backward pass
    through batch norm on a slower kernel, so where channels are last they are sliced as such.
    """
    if x.requires_grad and x.stride(1) == 1:
        return x.permute(0, 2, 3, 1)[:, rows, columns, channels].permute(0, 3, 1, 2)
    return x[:, channels, rows, columns]


def repeat_channels(x: Tensor, out_channels: int) -> Tensor:
    """Repeats all channels as often as needed and drops the rest: N x C x H x W -> N x out x H x W."""
    channels = int(x.shape[1])  # a number also while the network is traced
    whole, rest = divmod(out_channels, channels)
    copies = [x] * whole + ([_take(x, slice(rest))] if rest else [])
    return copies[0] if len(copies) == 1 else torch.cat(copies, dim=1)


def _sum_groups(x: Tensor, out_channels: int) -> tuple[Tensor, int]:
    """Sums groups of neighbouring channels: N x C x H x W -> N x out x H x W, and a group's channels, to divide by.

    Channels are padded with zeros to a multiple of ``out_channels`` first, and the zeros count in the average,
    as Appendix B has it.
    """
    group = -(-x.shape[1] // out_channels)
    if x.shape[1] % group:
        x = _append_zeros(x, group * out_channels)
    total = _take(x, slice(0, None, group))
    for i in range(1, group):
        total = total + _take(x, slice(i, None, group))
    return _append_zeros(total, out_channels), group  # groups of zeros alone need not be summed


def _append_zeros(x: Tensor, channels: int) -> Tensor:
    missing = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def _divide(total: Tensor, group: int) -> Tensor:
    return total if group == 1 else total * (1.0 / group)


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat features to another size, in their own type: autocast would make them, and all sums with them, float32."""
    return F.interpolate(x, size=size, mode="nearest").to(x.dtype)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _add(total: Tensor, x: Tensor, first: Tensor, factor: float = 1.0) -> Tensor:
    """total + factor * x. Only the first sum needs memory of its own; later ones may go where it lies."""
    return torch.add(total, x, alpha=factor) if total is first else total.add_(x, alpha=factor)


def weigh(x: Tensor, weight: Tensor) -> Tensor:
    """Return x times a scalar weight, in float32 where x is of half precision.

    The weight's gradient is a sum over all of x, of which half precision would leave 3 digits, or infinity.
    """
    return x * (weight.reshape(1) if x.dtype in (torch.float16, torch.bfloat16) else weight)


def _scale(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else weigh(x, weight).to(x.dtype)


def _divides(small: tuple[int, int], large: tuple[int, int]) -> bool:
    return all(b % a == 0 for a, b in zip(small, large, strict=True))


class Fusion(nn.Module):
    """Brings a feature from one path to another path's channels and resolution (Appendix B, Figure 4).

    Args:
        channels: channels of each path, highest resolution first.
        strides: input pixels per feature of each path, each dividing the next.
        offsets: the input pixel at the centre of each path's first feature (0 with the usual padding).

    Going down, the feature at the target's own pixel is taken, where the paper says only "down-sample": with
    the published paddings a plain resize would take features up to two cells away.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], offsets: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.offsets = tuple(offsets) if offsets is not None else (0,) * len(self.channels)
        if not len(self.channels) == len(self.strides) == len(self.offsets):
            raise InputError(
                f"channels, strides and offsets must be equally long, found {channels}, {strides}, {offsets}"
            )

    def forward(self, x: Tensor, source: int, target: int, size: tuple[int, int]) -> Tensor:
        """N x C_source x h x w -> N x C_target x H x W.

        Args:
            source, target: indices of the paths.
            size: H and W of the target path's features.
        """
        if source == target:
            return x
        if source < target:
            start, step = self.grid(source, target)
            rows, columns = (slice(start, start + step * length, step) for length in size)
            x = _take(x, rows=rows, columns=columns)
            if x.shape[2] < size[0] or x.shape[3] < size[1]:
                x = _enlarge(x, size)
            return _divide(*self._match_channels(x, target))
        x = _divide(*self._match_channels(x, target))
        return _enlarge(x, size)

    def grid(self, source: int, target: int) -> tuple[int, int]:
        """Return which of a path's features a path of lower resolution takes first, and the step to the next."""
        start = (self.offsets[target] - self.offsets[source]) // self.strides[source]
        return start, self.strides[target] // self.strides[source]

    def channel_weight(self, source: int, target: int) -> Tensor:
        """The C_target x C_source x 1 x 1 weights of a convolution that changes channels as ``forward`` does."""
        unit = torch.eye(self.channels[source])[None, :, :, None]  # column i has channel i alone
        return _divide(*self._match_channels(unit, target))[0, :, :, :, None]

    def add_all(
        self,
        features: Sequence[Tensor],
        sources: Iterable[int],
        target: int,
        weights: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """The target path's feature and what ``forward`` brings from each of the sources, summed.

        Repeating by 8 is repeating by 2 three times. So where features enlarge by whole factors, the lowest path's
        part is enlarged to the next one's size and added there, and so on: the large sums and copies at the target's
        resolution are made once.

        Args:
            features: of each path, N x C_p x H_p x W_p.
            sources: indices of other paths.
            weights: by source, of what it brings; 1 where there is none.
        """
        total, size = features[target], _size(features[target])
        order, weights = sorted(sources, reverse=True), weights or {}
        for source in (path for path in order if path < target):
            x = _scale(self.forward(features[source], source, target, size), weights.get(source))
            total = _add(total, x, features[target])
        low: Tensor | None = None  # the lower paths' parts, still to be multiplied: a sum does it for nothing
        factor = 1.0
        for source in (path for path in order if path > target):
            x, group = self._match_channels(features[source], target)
            x = _scale(x, weights.get(source))
            if low is not None:
                if _divides(_size(low), _size(x)) and _divides(_size(x), size):
                    low = _enlarge(low, _size(x))
                    x = torch.add(x, low, alpha=factor * group)
                else:
                    low = _enlarge(low, size)
                    total = _add(total, low, features[target], factor)
            low, factor = x, 1.0 / group
        if low is not None:
            total = _add(total, _enlarge(low, size), features[target], factor)
        return total

    def _match_channels(self, x: Tensor, target: int) -> tuple[Tensor, int]:
        """The target's channels from those of ``x``, and what they are still to be divided by."""
        channels = self.channels[target]
        return (repeat_channels(x, channels), 1) if channels >= x.shape[1] else _sum_groups(x, channels)
