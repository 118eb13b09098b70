"""The converter on weights under mobile_cv's names; tests/plugins has it on the real ones."""

import pytest
import torch

from d2go_fbnetv5 import Supernet
from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.mobile_cv import convert_mobile_cv, load_mobile_cv_checkpoint


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
    converted = convert_mobile_cv(theirs, "N")
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
    with pytest.raises(ValueError, match="blocks named xif<stage>_<block>, family A has"):
        convert_mobile_cv(their_weights("N"), "A")
    with pytest.raises(ValueError, match="in family A it is"):
        convert_mobile_cv(their_weights("A_R"), "A")
    broken = their_weights("N")
    del broken["backbone.stages.xif1_1.dw.conv.weight"]
    with pytest.raises(ValueError, match="xif1_1: 'dw.conv.weight' is missing in the checkpoint"):
        convert_mobile_cv(broken, "N")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_mobile_cv_checkpoint(tmp_path / "none.pth", "N")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint of tensors"):
        load_mobile_cv_checkpoint(tmp_path / "text.pth", "N")
