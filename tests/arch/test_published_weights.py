"""The converter on weights under mobile_cv's names (tests/plugins has the real ones), and on timm's own models."""

import pytest
import torch
from torch import nn

from d2go_fbnetv5 import Supernet, Topology
from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.published_weights import convert_published, fill_stages, load_published


def their_weights(name, prefix="backbone.stages."):
    """A family's weights under the names that mobile_cv gives them."""
    family = build_family(name)
    modules = [(1, family.build_partition(0)), *((p + 2, family.build_partition(p)) for p in (1, 2, 3))]
    weights = {}
    for stage, partition in modules:
        for block, module in enumerate(partition):
            for key, value in module.state_dict().items():
                key = key.replace("se.reduce", "se.se.0.conv").replace("se.expand", "se.se.1")
                weights[f"{prefix}xif{stage}_{block}.{key}"] = value
    for key, value in family.build_pool().state_dict().items():
        weights[f"{prefix}xif6_0.{key.replace('pwl.', 'pwl.conv.')}"] = value
    weights["head.conv.weight"] = torch.zeros(10, family.pool.channels, 1, 1)
    return weights


def test_stage_0_takes_the_weights_over():
    theirs = their_weights("N")
    converted = convert_published(theirs, "N")
    supernet = Supernet("N", num_stages=1)
    stage0 = {key: value for key, value in converted.items() if key.startswith("stage0.")}
    missing, unexpected = supernet.load_state_dict(stage0, strict=False)
    assert not unexpected
    assert all(key.startswith("stages.") for key in missing)
    assert torch.equal(supernet.stage0["path0"][0].conv.weight, theirs["backbone.stages.xif1_0.conv.weight"])
    build_family("N").build_pool().load_state_dict(
        {key.removeprefix("pool."): value for key, value in converted.items() if key.startswith("pool.")}
    )


def test_wrong_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="blocks, named xif<stage>_<block> or .*, family A has"):
        convert_published(their_weights("N"), "A")
    with pytest.raises(ValueError, match="in family A it is"):
        convert_published(their_weights("A_R"), "A")
    broken = their_weights("N")
    del broken["backbone.stages.xif1_1.dw.conv.weight"]
    with pytest.raises(ValueError, match="xif1_1: 'dw.conv.weight' is missing in the checkpoint"):
        convert_published(broken, "N")
    with pytest.raises(ValueError, match="family B does not; allowed for timm's weights: B_TIMM, D, G"):
        convert_published({"conv_stem.weight": torch.zeros(16, 3, 3, 3)}, "B")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_published(tmp_path / "none.pth", "N")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint of tensors"):
        load_published(tmp_path / "text.pth", "N")


def with_statistics(model):
    """The model with batch norms as training leaves them, so that none is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["B_TIMM", "D", "G"])
def test_outputs_equal_timms_with_its_weights(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = with_statistics(timm.create_model(f"fbnetv3_{name[0].lower()}", num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    weights = load_published(tmp_path / "timm.pth", name)

    supernet, pool = Supernet(name, num_stages=1).eval(), build_family(name).build_pool().eval()
    stage0 = {key: value for key, value in weights.items() if key.startswith("stage0.")}
    assert not supernet.load_state_dict(stage0, strict=False).unexpected_keys
    pool.load_state_dict({key[5:]: value for key, value in weights.items() if key.startswith("pool.")})
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = supernet(x, Topology.named("linear", 1))["path3"]
        found = nn.functional.linear(pool(features).flatten(1), weights["fc.weight"], weights["fc.bias"])
        torch.testing.assert_close(found, theirs(x), atol=1e-5, rtol=1e-5)


def test_blocks_begin_with_their_partitions_last_layers_and_change_nothing_yet():
    torch.manual_seed(0)
    trained = with_statistics(Supernet("N", num_stages=1))
    stage0 = {k: v for k, v in trained.state_dict().items() if k.startswith("stage0.")}
    supernet = Supernet("N", num_stages=3).eval()
    supernet.load_state_dict(fill_stages(stage0, "N", 3))  # all of it is there
    taken = 0
    for path, channels in supernet.channels.items():
        layers = list(supernet.stage0[path])[-2:]
        for stage in ("stage1", "stage3"):
            blocks = supernet.stages[stage][path]
            for block, layer in zip(blocks, layers, strict=True):
                shapes = [[p.shape for p in each.parameters()] for each in (block, layer)]
                same_shape = shapes[0] == shapes[1]
                same = same_shape and torch.equal(block.pwl.conv.weight, layer.pwl.conv.weight)
                assert same == same_shape
                taken += same
            x = torch.randn(1, channels, 6, 6)
            with torch.no_grad():
                assert torch.equal(blocks(x), x)
    assert taken >= 8
