"""A searched backbone as a fixed list of steps, which every exporter can read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import PATHS, Backbone
from d2go_fbnetv5.arch.families import Family
from d2go_fbnetv5.arch.fusion import average_channels, repeat_channels


class FlatBackbone(nn.Module):
    """Computes what `Backbone` does, bit by bit, without looking at a topology or comparing sizes.

    Args:
        backbone: its blocks are shared, not copied.

    Attributes:
        outputs: the names of the features, in order.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.outputs = backbone.outputs
        self.stage0 = nn.ModuleList(backbone.stage0.values())
        self.stages = nn.ModuleList()
        family, topology = backbone.family, backbone.topology
        for stage, blocks in enumerate(backbone.stages.values(), start=1):
            steps = [
                _FusedBlock(
                    family,
                    path,
                    [s for s in range(len(self.stage0)) if s != path and topology.keeps(stage - 1, s)],
                    blocks[PATHS[path]],
                )
                for path in range(len(self.stage0))
                if topology.keeps(stage, path)
            ]
            if steps:
                self.stages.append(_Stage(steps))
        self._indices = [PATHS.index(name) for name in self.outputs]

    def forward(self, images: Tensor) -> list[Tensor]:
        """1 x 3 x H x W, normalised -> the features of ``outputs``."""
        features: list[Tensor] = []
        x = images
        for partition in self.stage0:
            x = partition(x)
            features.append(x)
        for stage in self.stages:
            features = stage(features)
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

    def __init__(self, family: Family, path: int, sources: list[int], block: nn.Module) -> None:
        super().__init__()
        self.path = path
        self.edges = nn.ModuleList(
            _Down(family, source, path) if source < path else _Up(family, source, path) for source in sources
        )
        self.block = block

    def forward(self, features: list[Tensor]) -> Tensor:
        total = features[self.path]
        height, width = total.shape[2], total.shape[3]
        for edge in self.edges:
            total = total + edge(features[edge.source], height, width)
        return self.block(total)


class _Down(nn.Module):
    """To a path of lower resolution: features on the target's own pixels, channels repeated."""

    def __init__(self, family: Family, source: int, target: int) -> None:
        super().__init__()
        self.source = source
        self.channels = family.channels[target]
        self.step = family.strides[target] // family.strides[source]
        self.start = (family.offsets[target] - family.offsets[source]) // family.strides[source]
        self.exact = is_exact(family)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x[:, :, self.start :: self.step, self.start :: self.step]
        if not self.exact:
            x = x[:, :, :height, :width]
        return repeat_channels(x, self.channels)


class _Up(nn.Module):
    """To a path of higher resolution: channels averaged, features repeated as by nearest interpolation."""

    def __init__(self, family: Family, source: int, target: int) -> None:
        super().__init__()
        self.source = source
        self.channels = family.channels[target]
        self.factor = family.strides[source] // family.strides[target]
        self.exact = is_exact(family)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = average_channels(x, self.channels)
        if self.exact:
            return torch.nn.functional.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        rows, columns = _nearest(x.shape[2], height, x), _nearest(x.shape[3], width, x)
        return x[:, :, rows][:, :, :, columns]


def _nearest(source: int, target: int, like: Tensor) -> Tensor:
    """The ``target`` indices in 0..source - 1 that nearest interpolation reads."""
    scale = float(source) / float(target)
    index = torch.arange(target, device=like.device, dtype=torch.float32) * scale
    return index.floor().to(torch.int64).clamp(max=source - 1)


def is_exact(family: Family) -> bool:
    """Whether each path of an image whose sides are multiples of 32 has exactly H / stride x W / stride features."""
    return all(
        family.feature_sizes((side, side))[p] == (side // stride,) * 2
        for side in (64, 96)
        for p, stride in enumerate(family.strides)
    )
