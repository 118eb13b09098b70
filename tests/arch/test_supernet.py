import statistics
import time
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d2go_fbnetv5 import Backbone, Supernet, Topology
from d2go_fbnetv5.arch import PATHS, block_costs, build_family, list_families


def lively(network):
    """Random statistics and scales, so that no block is the identity and no two paths agree by chance."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", list_families())
def test_backbone_equals_supernet(name):
    supernet = lively(Supernet(name, num_stages=3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 75, 96, generator=generator)
    for outputs in (PATHS, ("path2",), ("path1", "path3")):
        topology = Topology.random(3, generator=generator)
        backbone = Backbone(name, topology, outputs).eval()
        backbone.load_supernet(supernet)
        with torch.no_grad():
            expected, found = supernet(x, topology), backbone(x)
        assert list(found) == list(outputs)
        for path in outputs:
            torch.testing.assert_close(found[path], expected[path], atol=1e-5, rtol=1e-5)
            assert found[path].shape[1] == backbone.channels[path] == supernet.channels[path]


@pytest.mark.parametrize("training", [False, True])
def test_topologies_on_the_same_images_give_what_each_gives_alone(training):
    """All 256 of two stages, in training with the batch's statistics; blocks with the same inputs run once."""
    supernet = lively(Supernet("N", num_stages=2)).train(training)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    topologies = [
        Topology([[i >> bit & 1 for bit in range(4)], [i >> bit & 1 for bit in range(4, 8)]])
        for i in range(256)
    ]
    runs = []
    for block in (block for stage in supernet.stages.values() for block in stage.values()):
        block.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        together = supernet.forward_each(images, topologies)
        # Stage 1: 4 blocks. Stage 2: each block after each of the 8 choices of the others before it, its own or none.
        assert len(runs) == 4 + 4 * 16
        for topology, found in zip(topologies[::9], together[::9], strict=True):
            torch.testing.assert_close(found, supernet(images, topology))
    networks = {topology.prune(("path2",)) for topology in topologies}
    assert len({id(features["path2"]) for features in together}) == len(networks)


def test_dead_blocks_are_gone():
    topology = Topology.full(2)
    backbone = Backbone("N", topology, {"path0"})
    names = {".".join(key.split(".")[:3]) for key in backbone.state_dict() if key.startswith("stages")}
    # The last stage serves Path 0 alone; everything at the stage before is fused into it.
    assert names == {f"stages.stage1.path{p}" for p in range(4)} | {"stages.stage2.path0"}
    linear = Backbone("N", Topology.named("linear", 2), {"path1"})
    assert set(linear.stage0) == {"path0", "path1"}


def test_skipped_blocks_do_not_run():
    supernet = Supernet("N", num_stages=2).eval()
    ran = []
    for stage, blocks in supernet.stages.items():
        for path, block in blocks.items():
            block.register_forward_hook(lambda *_, key=(stage, path): ran.append(key))
    topology = Topology([[1, 0, 0, 1], [0, 0, 1, 0]])
    supernet(torch.zeros(1, 3, 64, 64), topology)
    assert sorted(ran) == [("stage1", "path0"), ("stage1", "path3"), ("stage2", "path2")]


def test_equation_2_and_appendix_b_by_hand():
    supernet = lively(Supernet("N", num_stages=2))
    topology = Topology([[1, 0, 0, 0], [0, 1, 0, 0]])
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        stage0, feature = [], x
        for partition in supernet.stage0.values():
            feature = partition(feature)
            stage0.append(feature)
        sizes = [f.shape[2:] for f in stage0]

        def fuse(feature, source, target):
            return supernet.fusion(feature, source, target, sizes[target])

        path0 = stage0[0] + sum(fuse(stage0[p], p, 0) for p in (1, 2, 3))
        path0 = supernet.stages["stage1"]["path0"](path0)
        # Stage 1 keeps Path 0 alone, so only it is fused into Stage 2's Path 1.
        path1 = supernet.stages["stage2"]["path1"](stage0[1] + fuse(path0, 0, 1))
        found = supernet(x, topology)
    for name, expected in zip(PATHS, (path0, path1, stage0[2], stage0[3]), strict=True):
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("training", [False, True])
def test_soft_masks_of_zeros_and_ones_give_the_same_features(training):
    supernet = lively(Supernet("N", num_stages=3)).train(training)
    generator = torch.Generator().manual_seed(1)
    for prob in (0.0, 0.3, 0.5, 0.8, 1.0):
        topology = Topology.random(3, prob=prob, generator=generator)
        x = torch.randn(2, 3, 75, 96, generator=generator)
        with torch.no_grad():
            expected = supernet(x, topology)
            found = supernet.forward_soft(x, torch.tensor(topology.mask, dtype=torch.float32))
        assert list(found) == list(expected)
        for path in expected:
            torch.testing.assert_close(found[path], expected[path], atol=0, rtol=0)


def test_a_soft_mask_has_the_gradient_of_what_each_block_adds():
    """The last block's own is the difference that it makes; of those before, differences are checked."""
    supernet = lively(Supernet("N", num_stages=2)).double()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.float64, requires_grad=True)

    def loss(mask):
        return supernet.forward_soft(x, mask)["path1"].square().sum().sqrt()

    assert torch.autograd.gradcheck(loss, mask, eps=1e-6)
    gradient = torch.autograd.grad(loss(mask), mask)[0]
    # Path 1 is all that the loss sees of the last stage; the skipped ones of stage 1 would be fused into it.
    assert (gradient[1] != 0).tolist() == [False, True, False, False]
    assert (gradient[0] != 0).all()
    with pytest.raises(ValueError, match=r"a mask of \(2, 4\).*has \(1, 4\)"):
        Supernet("N", 1).forward_soft(torch.zeros(1, 3, 64, 64), torch.ones(2, 4))


def test_gradients_reach_kept_blocks_only():
    supernet = lively(Supernet("N", num_stages=2)).train()
    topology = Topology([[1, 0, 1, 0], [0, 1, 0, 1]])
    features = supernet(torch.randn(2, 3, 64, 64), topology)
    sum(f.square().mean() for f in features.values()).backward()
    for s, row in enumerate(topology.mask, start=1):
        for p, kept in enumerate(row):
            gradients = [w.grad for w in supernet.stages[f"stage{s}"][PATHS[p]].parameters()]
            assert all((g is not None) == kept for g in gradients)


def test_a_topology_goes_to_any_family():
    topology = Topology.named("unet")
    for name in list_families():
        backbone = Backbone(name, topology, {"path0"})
        assert backbone.topology == topology
        assert backbone.channels == {"path0": build_family(name).channels[0]}


def test_errors_name_what_is_wrong():
    supernet = Supernet("N", num_stages=3)
    with pytest.raises(ValueError, match="2 x 4 stages x paths: this supernet has 3 x 4"):
        supernet(torch.zeros(1, 3, 64, 64), Topology.full(2))
    with pytest.raises(ValueError, match="16 x 200 pixels: family A needs 49 x 49"):
        Supernet("A", 1)(torch.zeros(1, 3, 16, 200), Topology.full(1))
    with pytest.raises(ValueError, match="num_stages is 0"):
        Supernet("N", 0)
    with pytest.raises(ValueError, match="3 paths: families have 4"):
        Backbone("N", Topology([[1, 0, 1]]))
    with pytest.raises(ValueError, match="in the supernet"):
        Backbone("N", Topology.full(3)).load_supernet(Supernet("A", 3))
    with pytest.raises(ValueError, match=r"no 'stages.stage3.path0.*family N"):
        Backbone("N", Topology.full(3)).load_supernet(Supernet("N", 2))


def test_cost_of_networks():
    costs = block_costs("A", (224, 224))
    topology = Topology([[1, 0, 0, 1], [0, 0, 1, 0]])
    total = sum(costs.stage0) + costs.blocks[0] + costs.blocks[3] + costs.blocks[2]
    assert costs.network(topology) == total
    assert costs.network(topology, {"path2"}) == total
    assert costs.network(topology, {"path3"}) == sum(costs.stage0) + costs.blocks[3]
    assert costs.network(Topology.full(1), {"path3"}) == sum(costs.stage0) + costs.blocks[3]
    kept = costs.blocks[0] + costs.blocks[3] + costs.blocks[2]
    assert costs.relative(topology) == pytest.approx(kept / (2 * sum(costs.blocks)))
    assert costs.matrix(2)[1].tolist() == list(costs.blocks)


def test_cost_equals_the_built_backbone():
    topology = Topology.random(3, generator=torch.Generator().manual_seed(5))
    for outputs in ({"path0"}, {"path3"}, set(PATHS)):
        backbone = Backbone("N", topology, outputs)
        found = sum(p.numel() for p in backbone.parameters())
        assert block_costs("N", (96, 96), "params").network(topology, outputs) == found


def test_metric_and_size_are_checked():
    with pytest.raises(ValueError, match="'energy': allowed are flops, params"):
        block_costs("N", (64, 64), "energy")
    with pytest.raises(ValueError, match=r"size \(32, 224\).*49 to 16384 pixels"):
        block_costs("A", (32, 224))


@pytest.mark.slow
def test_time_grows_with_the_flops_of_the_kept_blocks():
    supernet = Supernet("A").eval()
    costs = block_costs("A", (224, 224))
    generator = torch.Generator().manual_seed(0)
    topologies = [Topology.random(7, prob=p, generator=generator) for p in torch.linspace(0.05, 0.95, 20)]
    x = torch.zeros(1, 3, 224, 224)
    times = {t: [] for t in topologies}
    with torch.inference_mode():
        for _ in range(5):
            for t in topologies:
                start = time.perf_counter()
                supernet(x, t)
                times[t].append(time.perf_counter() - start)
    flops = [costs.network(t) for t in topologies]
    correlation = statistics.correlation(flops, [min(times[t]) for t in topologies])
    assert correlation > 0.9


class LayoutLog(TorchDispatchMode):
    """Notes the operators of convolution and batch norm, forward and backward, that are given NCHW."""

    def __init__(self):
        super().__init__()
        self.seen, self.nchw = 0, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = str(operator)
        if "convolution" in name or "native_batch_norm" in name:
            inputs = args[:2] if "backward" in name else args[:1]  # the gradient and the input
            self.seen += 1
            if not all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs):
                self.nchw.append((name, tuple(inputs[0].shape)))
        return operator(*args, **(kwargs or {}))


def test_training_is_channels_last_throughout():
    network = Supernet("N", num_stages=3).train().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    with LayoutLog() as log:
        features = network(images, Topology.full(3))
        gradients = [torch.randn_like(feature) for feature in features.values()]
        torch.autograd.backward(list(features.values()), gradients)
    assert log.seen > 100
    assert log.nchw == []


def test_a_network_can_be_traced():
    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Backbone("N", Topology.full(2))

        def forward(self, images):
            return tuple(self.backbone(images).values())

    network, images = Outputs().eval(), torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, and of tracing's own age
        traced = torch.jit.trace(network, images)
    for found, expected in zip(traced(images), network(images), strict=True):
        assert torch.equal(found, expected)
