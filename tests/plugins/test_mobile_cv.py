"""FBNetV3 of ours against mobile_cv's own, where mobile_cv is installed."""

import os
import sys
from importlib.util import find_spec
from unittest import mock

import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.published_weights import load_published
from d2go_fbnetv5.plugins.stand_ins import install_stand_ins

if find_spec("mobile_cv"):
    install_stand_ins()
# mobile_cv asks for stdin's file descriptor when it is imported, which pytest's stand-in does not have.
with open(os.devnull) as null, mock.patch.object(sys, "stdin", null):
    fbnet_v2 = pytest.importorskip(
        "mobile_cv.model_zoo.models.fbnet_v2", reason="mobile_cv is not installed (it is not on PyPI)"
    )


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "E", "F", "G"])
def test_outputs_equal_mobile_cvs_with_its_weights(name, tmp_path):
    torch.manual_seed(0)
    theirs = fbnet_v2.fbnet(f"FBNetV3_{name}", pretrained=False)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.1)
    checkpoint = {"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "fbnet.pth")

    family = build_family(name)
    ours = nn.ModuleDict(
        {
            "stage0": nn.ModuleDict({f"path{p}": family.build_partition(p) for p in range(4)}),
            "pool": family.build_pool(),
        }
    )
    ours.load_state_dict(load_published(tmp_path / "fbnet.pth", name))
    x = torch.randn(2, 3, family.input_size, family.input_size)
    with torch.no_grad():
        expected = theirs.eval().backbone(x)
        found = x
        for partition in ours.eval()["stage0"].values():
            found = partition(found)
        found = ours["pool"](found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
