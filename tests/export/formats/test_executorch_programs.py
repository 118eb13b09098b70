"""ExecuTorch programs of modules: lowered, loaded and run; fp32 and int8."""

import sys

import pytest
import torch
from exported import needs_executorch
from torch.export import Dim

from d2go_fbnetv5.arch.blocks import ConvBNAct, build_block
from d2go_fbnetv5.export.formats.executorch_int8 import quantized
from d2go_fbnetv5.export.formats.executorch_programs import (
    LoadedProgram,
    lower,
    lower_programs,
    num_threads,
    set_num_threads,
)
from d2go_fbnetv5.export.network.fold import folded


def test_without_executorch_one_sentence_says_what_to_install(monkeypatch):
    for name in ("executorch", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'd2go_fbnetv5\[export\]'"):
        lower({"forward": (torch.nn.ReLU().eval(), (torch.zeros(1),), None)})
    with pytest.raises(ValueError, match="needs executorch"):
        LoadedProgram(b"")


@needs_executorch
def test_two_methods_with_dynamic_sizes():
    torch.manual_seed(0)
    net = folded(ConvBNAct(3, 8, stride=2))
    regions = torch.nn.Conv2d(4, 2, 3).eval().requires_grad_(False)
    size = {2: 4 * Dim("height", min=2, max=8), 3: 4 * Dim("width", min=2, max=8)}
    program = LoadedProgram(
        lower(
            {
                "net": (net, (torch.zeros(1, 3, 16, 16),), (size,)),
                "regions": (regions, (torch.zeros(30, 4, 6, 6),), ({0: Dim("n", min=1, max=30)},)),
            }
        )
    )
    assert sorted(program.methods) == ["net", "regions"]
    for height, width in ((16, 16), (32, 8), (12, 32)):
        x = torch.randn(1, 3, height, width)
        torch.testing.assert_close(program.methods["net"](x), [net(x)], atol=1e-5, rtol=1e-5)
    # Sizes on both sides of 16, where torch changes its kind of convolution.
    for count in (1, 2, 15, 16, 30):
        x = torch.randn(count, 4, 6, 6)
        torch.testing.assert_close(program.methods["regions"](x), [regions(x)], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'regions' cannot run inputs of \(31, 4, 6, 6\)"):
        program.methods["regions"](torch.zeros(31, 4, 6, 6))


@needs_executorch
def test_broken_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pte"):
        LoadedProgram(tmp_path / "gone.pte")
    content = lower({"forward": (torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),), None)})
    (tmp_path / "cut.pte").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.pte"):
        LoadedProgram(tmp_path / "cut.pte")


@needs_executorch
def test_threads():
    before = num_threads()
    try:
        set_num_threads(1)
        assert num_threads() == 1
        with pytest.raises(ValueError, match="0 threads"):
            set_num_threads(0)
    finally:
        set_num_threads(before)


class _Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = build_block("conv_k3_hs", 3, 16, 2)
        self.block = build_block("ir_k3_sehsig_hs", 16, 16, 1, 3)
        self.last = torch.nn.Conv2d(16, 4, 1)
        torch.nn.init.ones_(self.block.pwl.bn.weight)

    def forward(self, x):
        return self.last(self.block(self.first((x - 120) * 0.02)))


@needs_executorch
def test_int8():
    torch.manual_seed(0)
    net, image = folded(_Small()), torch.rand(1, 3, 16, 16) * 255
    size = {2: 8 * Dim("height", min=1, max=4), 3: 8 * Dim("width", min=1, max=4)}
    calibration = [(torch.rand(1, 3, 16, 24) * 255,) for _ in range(4)]
    graph = quantized(net, (image,), (size,), calibration, ["last"])

    int8 = {name for name, value in graph.state_dict.items() if value.dtype == torch.int8}
    constants = {
        name for name, value in graph.constants.items() if getattr(value, "dtype", None) == torch.int8
    }
    assert len(int8 | constants) == 4  # all convolutions but the gate's two and the last one

    program = LoadedProgram(lower_programs({"forward": graph}))
    for height, width in ((16, 16), (32, 8)):
        x = torch.rand(1, 3, height, width) * 255
        exact, found = net(x), program.methods["forward"](x)[0]
        assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()
        # What was measured before lowering is what runs, but for a step where rounding differs.
        torch.testing.assert_close(found, graph.module()(x), atol=0.02 * float(exact.abs().max()), rtol=0)


@needs_executorch
def test_int8_needs_images_and_known_layers():
    net, image = folded(ConvBNAct(3, 4)), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="no calibration images"):
        quantized(net, (image,), None, [])
    with pytest.raises(ValueError, match="float_layers has head"):
        quantized(net, (image,), None, [(image,)], ["conv", "head"])
