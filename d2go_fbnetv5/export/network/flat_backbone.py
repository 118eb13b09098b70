"""A searched backbone as a fixed list of steps, which every exporter can read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch import PATHS, Backbone
from d2go_fbnetv5.arch.families import Family
from d2go_fbnetv5.arch.fusion import Fusion


class FlatBackbone(nn.Module):
    """Computes what `Backbone` does without looking at a topology or comparing sizes.

    Fusion's changes of channels are 1 x 1 convolutions with fixed weights of 0, 1 and 1 / group: mobile runtimes have
    no strided slices, but they stride a convolution, and so the whole network stays in one piece there.

    Args:
        backbone: its blocks are shared, not copied.
        any_size: for images of any size; without it only for those whose sides are multiples of 32, where most
            families enlarge by whole factors.

    Attributes:
        outputs: the names of the features, in order.
        padded: inner features have more channels than the outputs (`pad_channels`).
    """

    def __init__(self, backbone: Backbone, any_size: bool = False) -> None:
        super().__init__()
        self.outputs = backbone.outputs
        self.padded = False
        self.stage0 = nn.ModuleList(backbone.stage0.values())
        self.stages = nn.ModuleList()
        fusion, topology = backbone.fusion, backbone.topology
        whole = not any_size and divides(backbone.family)
        for stage, blocks in enumerate(backbone.stages.values(), start=1):
            steps = [
                _FusedBlock(fusion, path, topology.fused(stage, path), whole, blocks[PATHS[path]])
                for path in range(len(self.stage0))
                if topology.keeps(stage, path)
            ]
            if steps:
                self.stages.append(_Stage(steps))
        self._indices = [PATHS.index(name) for name in self.outputs]
        self._channels = [backbone.channels[name] for name in self.outputs]

    def forward(self, images: Tensor) -> list[Tensor]:
        """1 x 3 x H x W, normalised -> the features of ``outputs``."""
        features: list[Tensor] = []
        x = images
        for partition in self.stage0:
            x = partition(x)
            features.append(x)
        for stage in self.stages:
            features = stage(features)
        if self.padded:
            return [features[i][:, :count] for i, count in zip(self._indices, self._channels)]  # noqa: B905
        return [features[i] for i in self._indices]


class _Stage(nn.Module):
    """Blocks that all read the features of the stage before."""

    def __init__(self, blocks: list[_FusedBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        updated = [feature for feature in features]  # noqa: C416 (TorchScript has no list(features))
        for block in self.blocks:
            updated[block.path] = block(features)
        return updated


class _FusedBlock(nn.Module):
    """Sums the path's own feature and what other paths bring, and runs the block."""

    def __init__(self, fusion: Fusion, path: int, sources: list[int], whole: bool, block: nn.Module) -> None:
        super().__init__()
        self.path = path
        above, below = [s for s in sources if s < path], [s for s in sources if s > path]
        self.edges = nn.ModuleList(_Down(fusion, source, path, whole) for source in above)
        self.climb = _Climb(fusion, below, path) if whole and below else None
        if not whole:
            self.edges.extend(_Up(fusion, source, path) for source in below)
        self.block = block

    def forward(self, features: list[Tensor]) -> Tensor:
        total = features[self.path]
        height, width = total.shape[2], total.shape[3]
        for edge in self.edges:
            total = total + edge(features[edge.source], height, width)
        if self.climb is not None:
            total = total + self.climb(features)
        return self.block(total)


class _Down(nn.Module):
    """To a path of lower resolution: features on the target's own pixels, channels repeated."""

    def __init__(self, fusion: Fusion, source: int, target: int, whole: bool) -> None:
        super().__init__()
        self.source = source
        self.whole = whole
        self.start, self.step = fusion.grid(source, target)
        self.register_buffer("weight", fusion.channel_weight(source, target))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        if self.start > 0:
            x = x[:, :, self.start :, self.start :]
        x = F.conv2d(x, self.weight, stride=self.step)
        return x if self.whole else x[:, :, :height, :width]


class _Up(nn.Module):
    """To a path of higher resolution: channels averaged, features repeated as by nearest interpolation."""

    def __init__(self, fusion: Fusion, source: int, target: int) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("weight", fusion.channel_weight(source, target))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = F.conv2d(x, self.weight)
        rows, columns = _nearest(x.shape[2], height, x), _nearest(x.shape[3], width, x)
        return x[:, :, rows][:, :, :, columns]


class _Climb(nn.Module):
    """The sum of what all paths of lower resolution bring, where features enlarge by whole factors.

    Repeating by 8 is repeating by 2 three times, so the lowest path's part is enlarged to the next one's size and
    added there, and so on: the large sums and copies at the target's resolution are made once.
    """

    def __init__(self, fusion: Fusion, sources: list[int], target: int) -> None:
        super().__init__()
        sources = sorted(sources, reverse=True)
        strides = [fusion.strides[path] for path in [*sources, target]]
        self.first, *rest = (
            _Rung(fusion, source, target, strides[i] // strides[i + 1]) for i, source in enumerate(sources)
        )
        self.rest = nn.ModuleList(rest)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.first.enlarge(self.first(features[self.first.source]))
        for rung in self.rest:
            x = rung.enlarge(rung(features[rung.source]) + x)
        return x


class _Rung(nn.Module):
    """One path's part in a `_Climb`.

    Attributes:
        factor: to the size of the next one.
        concatenates: repeat features by concatenation, for XNNPACK (`concatenate_to_enlarge`).
    """

    def __init__(self, fusion: Fusion, source: int, target: int, factor: int) -> None:
        super().__init__()
        self.source = source
        self.factor = factor
        self.concatenates = False
        self.register_buffer("weight", fusion.channel_weight(source, target))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)

    @torch.jit.export
    def enlarge(self, x: Tensor) -> Tensor:
        if self.concatenates:
            return _concatenated(x, self.factor)
        return F.interpolate(x, scale_factor=float(self.factor), mode="nearest")


def concatenate_to_enlarge(module: nn.Module) -> None:
    """Has every `FlatBackbone` in a module, in place, enlarge features by concatenating them in place of nearest
    interpolation, which XNNPACK lacks: a network with it runs in many pieces. The result is the same."""
    for step in module.modules():
        if isinstance(step, _Rung):
            step.concatenates = True


def _concatenated(x: Tensor, factor: int) -> Tensor:
    """N x C x h x w -> N x C x h * factor x w * factor, each feature repeated; ``factor`` is a power of two."""
    n, channels, height, width = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    x = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    x = _repeated(x, factor).reshape(n, height, width * factor * channels)
    x = _repeated(x, factor).reshape(n, height * factor, width * factor, channels)
    return x.permute(0, 3, 1, 2)


def _repeated(x: Tensor, factor: int) -> Tensor:
    """N x A x B -> N x A x factor * B."""
    while factor > 1:
        # XNNPACK's partitioner refuses to concatenate a tensor with itself, so its twin passes through a clamp.
        x = torch.cat([x, x.clamp(min=-3.0e38)], dim=2)
        factor = factor // 2
    return x


def _nearest(source: int, target: int, like: Tensor) -> Tensor:
    """The ``target`` indices in 0..source - 1 that nearest interpolation reads."""
    # The ratio is a tensor: as a number, the ONNX exporter takes it, and with it the image's size, for a constant.
    scale = torch.ones(1, device=like.device) * source / target
    index = torch.arange(target, device=like.device, dtype=torch.float32) * scale
    return index.floor().to(torch.int64).clamp(max=source - 1)


def divides(family: Family) -> bool:
    """Tell whether an image whose sides are multiples of 32 has exactly H / stride x W / stride features on each path.

    Not with the published paddings of A, B, C, E and F.
    """
    return all(
        family.feature_sizes((side, side))[p] == (side // stride,) * 2
        for side in (64, 96)
        for p, stride in enumerate(family.strides)
    )
