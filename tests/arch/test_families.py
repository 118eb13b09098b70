import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import Family, block_costs, build_family, list_families, register_family
from d2go_fbnetv5.arch.blocks import (
    ConvBNAct,
    InvertedResidual,
    MBPool,
    build_block,
    make_divisible,
    parse_op,
)


def test_all_published_sizes_are_there():
    assert list_families() == ["A", "A_C", "A_R", "B", "B_TIMM", "C", "D", "E", "F", "G", "N"]
    with pytest.raises(ValueError, match="unknown family 'H'; allowed are A, A_C"):
        build_family("H")
    with pytest.raises(ValueError, match="registered already"):
        register_family(build_family("A"))


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [("A", 224, 340.0), ("A_C", 224, 112.1), ("A_R", 160, 99.3), ("C", 248, 537.3), ("F", 272, 1145.2)],
)
def test_stage_0_has_the_published_flops(name, size, published):
    costs = block_costs(name, (size, size))
    assert sum(costs.stage0) / 1e6 == pytest.approx(published, rel=0.01)


def test_blocks_of_a_have_the_published_flops():
    found = [flops / 1e6 for flops in block_costs("A", (224, 224)).blocks]
    assert found == pytest.approx([22.0, 19.8, 32.3, 38.4], rel=0.01)


@pytest.mark.parametrize("name", list_families())
def test_strides_sizes_and_offsets(name):
    family = build_family(name)
    assert family.strides == (4, 8, 16, 32)
    size = (97, 130)
    x = torch.zeros(1, 3, *size)
    for path in range(4):
        x = family.build_partition(path).eval()(x)
        assert x.shape[1:] == (family.channels[path], *family.feature_sizes(size)[path])
        block = family.build_stage_block(path)
        assert len(block) == 2
        assert block.eval()(x).shape == x.shape
    assert family.feature_sizes((family.min_input_size,) * 2)[-1] == (1, 1)
    assert min(family.feature_sizes((family.min_input_size - 1,) * 2)[-1]) < 1


@pytest.mark.parametrize("name", ["A", "C", "E", "F", "N"])
def test_offsets_are_the_pixels_that_features_look_at(name):
    """With all-ones kernels and nothing else, the centre of a feature's receptive field is its offset."""
    family = build_family(name)
    size = 161
    row = torch.arange(size, dtype=torch.float64)
    for path in range(4):
        for layer in family.partition_layers(path):
            spec = parse_op(layer.op)
            pad = spec.kernel_size // 2 if layer.pad is None else layer.pad
            centres = (
                torch.arange(0, len(row) + 2 * pad - spec.kernel_size + 1, layer.stride)
                + spec.kernel_size // 2
            )
            row = row[centres - pad]
        assert row[0] == family.offsets[path]
        assert row[1] - row[0] == family.strides[path]


def test_stage_block_is_listing_2():
    path3 = build_family("A").build_stage_block(3)
    shapes = [
        (b.dw.conv.kernel_size, b.pw.conv.in_channels, b.pw.conv.out_channels, b.residual) for b in path3
    ]
    assert shapes == [((5, 5), 224, 896, True), ((5, 5), 224, 1344, True)]


def test_a_fresh_block_is_the_identity():
    """The last batch norm starts at zero, so keeping a new block does no harm."""
    block = build_family("A").build_stage_block(2).eval()
    x = torch.randn(2, 120, 5, 7)
    torch.testing.assert_close(block(x), x)


def test_notation():
    conv = build_block("conv_k3_hs", 3, 8, stride=2)
    assert isinstance(conv, ConvBNAct)
    assert isinstance(conv.act, nn.Hardswish)
    block = build_block("ir_k5_sehsig", 8, 12, expansion=3)
    assert isinstance(block, InvertedResidual)
    assert isinstance(block.dw.act, nn.ReLU)
    assert isinstance(block.se.gate, nn.Hardsigmoid)
    assert isinstance(build_block("ir_k3_se_hs", 8, 8, expansion=4).se.gate, nn.Sigmoid)
    assert build_block("ir_k3_hs", 16, 16, expansion=1).pw is None
    for wrong in ("ir_k4_hs", "conv_k3_se", "ir_k3_hs_se", "ir_pool_hs", ""):
        with pytest.raises(ValueError, match="unknown operator"):
            parse_op(wrong)
    assert MBPool(6, 10, 2)(torch.zeros(2, 6, 3, 4)).shape == (2, 10, 1, 1)


def test_squeezed_width_is_a_quarter_of_the_input_rounded():
    assert InvertedResidual(120, 120, expansion=3, se="hard_sigmoid").se.reduce.out_channels == 32
    assert (
        InvertedResidual(40, 40, expansion=3, se="hard_sigmoid").se.reduce.out_channels == 16
    )  # 10, but 8 is too few


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 8), (12, 16), (20, 24), (30, 32), (44, 48), (84, 88), (120, 120)]
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


def test_families_are_validated():
    a = build_family("A")
    with pytest.raises(ValueError, match="3 partitions found, 4 allowed"):
        Family("X", 224, a.partitions[:3], a.pool)
    with pytest.raises(ValueError, match=r"strides \(4, 8, 16, 16\) found"):
        Family("X", 224, (*a.partitions[:3], a.partitions[3][1:]), a.pool)
