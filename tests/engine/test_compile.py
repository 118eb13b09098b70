import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import PATHS, Backbone, Supernet, Topology
from d2go_fbnetv5.engine.build import compile_model
from d2go_fbnetv5.engine.compile import compile_blocks
from d2go_fbnetv5.engine.config import get_cfg


class Counting:
    """A backend of torch.compile that counts graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def topologies(count):
    generator = torch.Generator().manual_seed(0)
    return [Topology.random(3, generator=generator) for _ in range(count)]


def run(network, topology):
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    features = network(images, topology)
    sum(feature.square().sum() for feature in features.values()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return features, gradients


@pytest.mark.slow
def test_another_topology_compiles_nothing_anew():
    backend = Counting()
    torch.manual_seed(0)
    plain = Supernet("N", num_stages=3).train()
    network = Supernet("N", num_stages=3).train()
    network.load_state_dict(plain.state_dict())
    assert compile_blocks(network, backend) == 4 + 3 * 4
    assert list(network.state_dict()) == list(plain.state_dict())
    run(network, Topology.full(3))
    run(plain, Topology.full(3))
    compiled = backend.graphs
    assert compiled >= 1 + 4 + 4  # the trial, Stage 0, and one block for each path
    for topology in topologies(6):
        features, gradients = run(network, topology)
        expected, expected_gradients = run(plain, topology)
        assert gradients.keys() == expected_gradients.keys()
        for path in PATHS:
            torch.testing.assert_close(features[path], expected[path])
    assert backend.graphs == compiled


@pytest.mark.slow
def test_weights_go_to_and_fro(tmp_path):
    network = Backbone("N", Topology.full(2)).eval()
    compile_blocks(network, Counting())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    plain = Backbone("N", Topology.full(2)).eval()
    plain.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)["path3"], plain(images)["path3"])
    network.load_state_dict(plain.state_dict())


def test_a_machine_without_a_compiler_is_told_so():
    def missing(graph, inputs):
        raise RuntimeError("no g++ here\nmore lines")

    with pytest.raises(ValueError, match=r"does not work on this machine with cpu.*no g\+\+ here$"):
        compile_blocks(Supernet("N", num_stages=1), missing)
    with pytest.raises(ValueError, match="no blocks of the search space"):
        compile_blocks(nn.Linear(2, 2), Counting())


@pytest.mark.parametrize("wanted", [False, True])
def test_a_configuration_asks_for_it(wanted, monkeypatch):
    networks = []
    monkeypatch.setattr("d2go_fbnetv5.engine.build.compile_blocks", networks.append)
    cfg, network = get_cfg(), Supernet("N", num_stages=1)
    cfg.MODEL.FBNETV5.COMPILE = wanted
    compile_model(cfg, network)
    assert networks == [network] * wanted


def test_the_key_is_named_where_it_cannot_be(monkeypatch):
    cfg = get_cfg()
    cfg.MODEL.FBNETV5.COMPILE = True
    with pytest.raises(ValueError, match="MODEL.FBNETV5.COMPILE is True: there are no blocks"):
        compile_model(cfg, nn.Linear(2, 2))
