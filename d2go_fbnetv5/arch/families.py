"""The families: FBNetV3 networks cut into the four partitions that become the supernet's paths.

A, C and F are what the paper's results use, A_C and A_R are its Appendix D, B, D, E and G are the other
published FBNetV3 sizes. The tables are those of the paper's Appendix A and of FBNetV3's published model
definitions, with their unusual paddings (``pad``), which the paper's FLOPs agree with. B_TIMM is B as timm has
trained it, padded by half of each kernel (its D and G are these). N is our own small network for tests and the
demo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from d2go_fbnetv5.arch.blocks import MBPool, build_block, parse_op, parse_pool_op
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.registry import Registry

NUM_PATHS = 4
PATHS = tuple(f"path{p}" for p in range(NUM_PATHS))


@dataclass(frozen=True)
class Layer:
    """``repeats`` blocks of one operator; only the first has the stride and the padding (None: kernel // 2)."""

    op: str
    channels: int
    stride: int
    repeats: int
    expansion: float = 1
    pad: int | None = None

    def expanded(self) -> Iterator[Layer]:
        yield Layer(self.op, self.channels, self.stride, 1, self.expansion, self.pad)
        for _ in range(self.repeats - 1):
            yield Layer(self.op, self.channels, 1, 1, self.expansion)

    def build(self, in_channels: int, divisor: int = 8) -> nn.Module:
        return build_block(
            self.op, in_channels, self.channels, self.stride, self.expansion, self.pad, divisor
        )


@dataclass(frozen=True)
class PoolSpec:
    """The family's MBPool for classification on Path 3."""

    op: str
    channels: int
    expansion: float

    def build(self, in_channels: int, divisor: int = 8) -> MBPool:
        return MBPool(in_channels, self.channels, self.expansion, parse_pool_op(self.op), divisor)


@dataclass(frozen=True)
class Family:
    """A network in four partitions of total stride 4, 8, 16 and 32 (section 3.1).

    Attributes:
        partitions: the layers of each partition; partition p's output is what Stage 0 gives Path p.
        input_size: the side in pixels that the network was published with.
        divisor: expanded and squeezed channels are rounded to multiples of it.
    """

    name: str
    input_size: int
    partitions: tuple[tuple[Layer, ...], ...]
    pool: PoolSpec
    divisor: int = 8

    def __post_init__(self) -> None:
        if len(self.partitions) != NUM_PATHS:
            raise InputError(
                f"family {self.name}: {len(self.partitions)} partitions found, {NUM_PATHS} allowed"
            )
        if self.strides != tuple(4 * 2**p for p in range(NUM_PATHS)):
            raise InputError(f"family {self.name}: strides {self.strides} found, (4, 8, 16, 32) allowed")
        for path in range(NUM_PATHS):
            if len(self.partition_layers(path)) < 2:
                raise InputError(f"family {self.name}: partition {path} has fewer than 2 layers")

    @property
    def num_paths(self) -> int:
        return len(self.partitions)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of Path 0 to Path 3."""
        return tuple(partition[-1].channels for partition in self.partitions)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature of Path 0 to Path 3."""
        total, strides = 1, []
        for path in range(self.num_paths):
            for layer in self.partition_layers(path):
                total *= layer.stride
            strides.append(total)
        return tuple(strides)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return the input pixel at the centre of each path's first feature.

        A strided convolution that pads less than half its kernel starts further in; the published paddings
        of A, C, E and F do. Fusion reads them to pick the features that lie on the same pixels.
        """
        stride, offset, offsets = 1, 0, []
        for path in range(self.num_paths):
            for layer in self.partition_layers(path):
                half = parse_op(layer.op).kernel_size // 2
                offset += (half - (half if layer.pad is None else layer.pad)) * stride
                stride *= layer.stride
            offsets.append(offset)
        return tuple(offsets)

    def partition_layers(self, path: int) -> tuple[Layer, ...]:
        """Return the layers of a partition with repeats written out."""
        return tuple(block for layer in self.partitions[path] for block in layer.expanded())

    def feature_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return height and width of each path's features for an input of ``size`` (height, width); 0 or less where
        the input is too small."""
        height, width = size
        sizes = []
        for path in range(self.num_paths):
            for layer in self.partition_layers(path):
                kernel = parse_op(layer.op).kernel_size
                pad = kernel // 2 if layer.pad is None else layer.pad
                height, width = ((x + 2 * pad - kernel) // layer.stride + 1 for x in (height, width))
            sizes.append((height, width))
        return tuple(sizes)

    @property
    def min_input_size(self) -> int:
        """Return the least side in pixels for which every path has a feature."""
        return next(side for side in range(1, 1024) if self.feature_sizes((side, side))[-1][0] >= 1)

    def build_partition(self, path: int) -> nn.Sequential:
        """Stage 0 of a path: the previous partition's output (or the image) -> this path's feature."""
        channels = 3 if path == 0 else self.channels[path - 1]
        layers = []
        for layer in self.partition_layers(path):
            layers.append(layer.build(channels, self.divisor))
            channels = layer.channels
        return nn.Sequential(*layers)

    def build_stage_block(self, path: int) -> nn.Sequential:
        """Build a searchable block: the last two layers of the partition at stride 1 (section 3.1, Listing 2)."""
        channels = self.channels[path]
        last_two = self.partition_layers(path)[-2:]
        return nn.Sequential(
            *(
                Layer(layer.op, channels, 1, 1, layer.expansion).build(channels, self.divisor)
                for layer in last_two
            )
        )

    def build_pool(self) -> MBPool:
        """MBPool on Path 3: N x C x H x W -> N x ``pool.channels`` x 1 x 1."""
        return self.pool.build(self.channels[-1], self.divisor)


_FAMILIES: Registry[Family] = Registry("family")


def register_family(family: Family) -> Family:
    """Make a family available to ``build_family`` and to configurations by its name; a taken one is a ValueError."""
    return _FAMILIES.add(family.name, family)


def build_family(name: str | Family) -> Family:
    """Return the family of that name (a Family passes through).

    Raises:
        ValueError: there is none; the message lists the names.
    """
    return name if isinstance(name, Family) else _FAMILIES[name]


def list_families() -> list[str]:
    """Return the names of all registered families."""
    return _FAMILIES.names()


def _ir(
    kernel: int,
    channels: int,
    stride: int,
    repeats: int,
    expansion: float,
    pad: int | None = None,
    block: str = "ir_k{}_hs",
) -> Layer:
    return Layer(block.format(kernel), channels, stride, repeats, expansion, pad)


_se = partial(_ir, block="ir_k{}_sehsig_hs")  # with squeeze and excite


def _fbnetv3(
    name: str,
    size: int,
    stem: tuple[int, int, int],
    *partitions: list[Layer],
    divisor: int = 8,
) -> None:
    """``stem``: channels of the first convolution, and channels and repeats of the blocks behind it."""
    first, channels, repeats = stem
    head = [Layer("conv_k3_hs", first, 2, 1), _ir(3, channels, 1, repeats, 1)]
    layers = (tuple(head + partitions[0]), *(tuple(partition) for partition in partitions[1:]))
    register_family(Family(name, size, layers, PoolSpec("ir_pool_hs", 1984, 6), divisor))


for _name, _size in (("A", 224), ("B", 248)):
    _fbnetv3(
        _name,
        _size,
        (16, 16, 2),
        [_ir(5, 24, 2, 1, 4), _ir(5, 24, 1, 3, 2)],
        [_se(5, 40, 2, 1, 5), _se(5, 40, 1, 4, 3)],
        [_ir(5, 72, 2, 1, 5, pad=1), _ir(3, 72, 1, 4, 3), _se(3, 120, 1, 1, 5), _se(5, 120, 1, 5, 3)],
        [_se(3, 184, 2, 1, 6, pad=0), _se(5, 184, 1, 5, 4), _se(5, 224, 1, 1, 6)],
    )
_B = build_family("B")
register_family(
    replace(
        _B,
        name="B_TIMM",
        partitions=tuple(tuple(replace(layer, pad=None) for layer in part) for part in _B.partitions),
    )
)
_fbnetv3(
    "C",
    248,
    (16, 16, 2),
    [_ir(5, 24, 2, 1, 5), _ir(3, 24, 1, 4, 3)],
    [_se(5, 48, 2, 1, 5), _se(5, 48, 1, 4, 2)],
    [_ir(5, 88, 2, 1, 4, pad=1), _ir(3, 88, 1, 4, 3), _se(3, 120, 1, 1, 4), _se(5, 120, 1, 5, 3)],
    [_se(5, 216, 2, 1, 5, pad=1), _se(5, 216, 1, 5, 5), _se(5, 216, 1, 1, 6)],
)
_fbnetv3(
    "D",
    248,
    (24, 16, 2),
    [_ir(3, 24, 2, 1, 5), _ir(3, 24, 1, 5, 2)],
    [_se(5, 40, 2, 1, 4), _se(3, 40, 1, 4, 3)],
    [_ir(3, 72, 2, 1, 5), _ir(3, 72, 1, 4, 3), _se(3, 128, 1, 1, 5), _se(5, 128, 1, 6, 3)],
    [_se(3, 208, 2, 1, 6), _se(5, 208, 1, 5, 5), _se(5, 240, 1, 1, 6)],
)
_fbnetv3(
    "E",
    264,
    (24, 16, 3),
    [_ir(5, 24, 2, 1, 4), _ir(5, 24, 1, 4, 2)],
    [_se(5, 48, 2, 1, 4), _se(5, 48, 1, 4, 3)],
    [_ir(5, 80, 2, 1, 5, pad=1), _ir(3, 80, 1, 4, 3), _se(3, 128, 1, 1, 5), _se(5, 128, 1, 7, 3)],
    [_se(3, 216, 2, 1, 6), _se(5, 216, 1, 5, 5), _se(5, 240, 1, 1, 6)],
)
_fbnetv3(
    "F",
    272,
    (24, 24, 3),
    [_ir(5, 32, 2, 1, 4), _ir(5, 32, 1, 4, 2)],
    [_se(5, 56, 2, 1, 4), _se(5, 56, 1, 4, 3)],
    [_ir(5, 88, 2, 1, 5), _ir(3, 88, 1, 4, 3), _se(3, 144, 1, 1, 5), _se(5, 144, 1, 8, 3)],
    [_se(3, 248, 2, 1, 6, pad=0), _se(5, 248, 1, 6, 5), _se(5, 272, 1, 1, 6)],
)
_fbnetv3(
    "G",
    320,
    (32, 24, 3),
    [_ir(5, 40, 2, 1, 4), _ir(5, 40, 1, 4, 2)],
    [_se(5, 56, 2, 1, 4), _se(5, 56, 1, 4, 3)],
    [_ir(5, 104, 2, 1, 5), _ir(3, 104, 1, 4, 3), _se(3, 160, 1, 1, 5), _se(5, 160, 1, 8, 3)],
    [_se(3, 264, 2, 1, 6), _se(5, 264, 1, 6, 5), _se(5, 288, 1, 2, 6)],
)
_fbnetv3(
    "A_C",
    224,
    (12, 12, 2),
    [_ir(3, 18, 2, 1, 3), _ir(3, 18, 1, 2, 2)],
    [_se(3, 30, 2, 1, 4), _se(3, 30, 1, 3, 2)],
    [_ir(3, 54, 2, 1, 4), _ir(3, 54, 1, 3, 2), _se(3, 80, 1, 1, 4), _se(3, 80, 1, 3, 2)],
    [_se(3, 138, 2, 1, 4), _se(3, 138, 1, 3, 3), _se(3, 168, 1, 1, 4)],
    divisor=1,
)
_fbnetv3(
    "A_R",
    160,
    (12, 12, 2),
    [_ir(3, 18, 2, 1, 4), _ir(3, 18, 1, 3, 2)],
    [_se(3, 30, 2, 1, 5), _se(3, 30, 1, 4, 3)],
    [_ir(3, 54, 2, 1, 5), _ir(3, 54, 1, 4, 3), _se(3, 80, 1, 1, 5), _se(3, 80, 1, 5, 3)],
    [_se(3, 138, 2, 1, 6), _se(3, 138, 1, 5, 4), _se(3, 168, 1, 1, 6)],
    divisor=1,
)
register_family(
    Family(
        "N",
        96,
        (
            (Layer("conv_k3_hs", 12, 2, 1), _ir(3, 16, 2, 1, 3), _ir(3, 16, 1, 1, 2)),
            (_ir(3, 24, 2, 1, 3), _ir(3, 24, 1, 1, 2)),
            (_se(3, 40, 2, 1, 3), _se(3, 40, 1, 1, 3)),
            (_se(3, 64, 2, 1, 3), _se(3, 64, 1, 1, 3)),
        ),
        PoolSpec("ir_pool_hs", 192, 3),
    )
)
