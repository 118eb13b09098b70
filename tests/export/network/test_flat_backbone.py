"""The exporters' backbone equals the searched one, whatever its topology, family and image."""

import warnings

import pytest
import torch

from d2go_fbnetv5.arch import PATHS, Backbone, Topology
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone, concatenate_to_enlarge, divides
from d2go_fbnetv5.export.network.fold import folded
from d2go_fbnetv5.export.network.pad_channels import pad_channels


def backbone(family, topology, outputs=PATHS):
    torch.manual_seed(0)
    network = Backbone(family, topology, outputs).eval().requires_grad_(False)
    for module in network.modules():  # a fresh block is the identity, and hides what fusion does
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1)
    return network


def assert_equal(network, flat, size):
    images = torch.randn(1, 3, *size)
    expected = network(images)
    found = flat(images)
    assert len(found) == len(expected)
    for feature, right in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(feature, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_equals_the_backbone_for_random_topologies(seed):
    generator = torch.Generator().manual_seed(seed)
    topology = Topology(torch.rand(3, 4, generator=generator) < 0.6)
    network = backbone("N", topology)
    for size in ((64, 96), (128, 64)):
        assert_equal(network, FlatBackbone(network), size)
    assert_equal(network, FlatBackbone(network, any_size=True), (75, 101))


@pytest.mark.parametrize("family", ["A", "F"])
@torch.no_grad()
def test_equals_the_backbone_in_families_that_pad_unusually(family):
    network = backbone(family, Topology([[1, 1, 1, 1]]))
    assert not divides(network.family)
    assert_equal(network, FlatBackbone(network), (96, 160))


@torch.no_grad()
def test_concatenation_enlarges_just_so():
    network = backbone("N", Topology([[1, 0, 0, 1], [1, 1, 0, 0]]), ("path0",))
    flat = FlatBackbone(network)
    images = torch.randn(1, 3, 64, 96)
    (expected,) = flat(images)
    concatenate_to_enlarge(flat)
    assert torch.equal(flat(images)[0], expected)


@pytest.mark.parametrize("family", ["N", "A_C"])
@torch.no_grad()
def test_padded_channels_change_nothing(family):
    """A_C has features of 12, 18, 30 and 54 channels, and gates of 4."""
    network = folded(backbone(family, Topology([[1, 1, 1, 1], [0, 1, 0, 1]])))
    flat = FlatBackbone(network)
    image = torch.randn(1, 3, 64, 96)
    expected = flat(image)
    pad_channels(flat)
    convolutions = [m for m in flat.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.out_channels % 4 == 0 and m.out_channels >= 16 for m in convolutions)
    for found, right in zip(flat(image), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_only_the_outputs_wanted():
    network = backbone("N", Topology([[1, 1, 1, 1], [0, 1, 0, 1]]), ("path1", "path3"))
    flat = FlatBackbone(network)
    assert flat.outputs == ("path1", "path3")
    assert [tuple(x.shape[1:]) for x in flat(torch.randn(1, 3, 64, 96))] == [(24, 8, 12), (64, 2, 3)]


@torch.no_grad()
def test_scripts_at_any_size():
    network = backbone("N", Topology.full(2))
    flat = FlatBackbone(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(flat)
    for size in ((64, 96), (128, 64)):
        images = torch.randn(1, 3, *size)
        assert all(map(torch.equal, scripted(images), flat(images)))
