import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.blocks import InvertedResidual
from d2go_fbnetv5.export.network.fold import folded


@pytest.fixture(params=["hard_sigmoid", "sigmoid", None])
def block(request):
    torch.manual_seed(0)
    block = InvertedResidual(8, 8, expansion=2, se=request.param)
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.bias, module.running_mean, module.running_var):
                    values.uniform_(0.5, 1.5)
        if block.se is not None:
            block.se.expand.bias.uniform_(-6, 6)  # gates that are shut, open and in between
    return block.eval()


def test_a_folded_block_computes_the_same_without_batch_norm(block):
    x = torch.randn(2, 8, 6, 6)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    small = folded(block)
    with torch.no_grad():
        assert torch.allclose(small(x), block(x), rtol=1e-5, atol=1e-5)
    kinds = {type(module) for module in small.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Hardsigmoid}
    assert not any(parameter.requires_grad for parameter in small.parameters())
    # The original is as it was, and still has what was folded.
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in block.modules())


def test_gates_of_a_family_become_relu6():
    family = build_family("N")
    small = folded(family.build_stage_block(3))
    assert [type(layer.se.gate) for layer in small] == [nn.ReLU6, nn.ReLU6]
    assert folded(family.build_stage_block(0))[0].se is None
