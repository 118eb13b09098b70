"""D2Go on packages that lack what it asks for."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.d2go import main
from d2go_fbnetv5.plugins import stand_ins
from d2go_fbnetv5.utils.errors import InputError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def installed(monkeypatch):
    """The stand-ins where none of what they stand in for is there, whatever this interpreter has."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for name in stand_ins.STAND_INS:
        sys.modules.pop(name, None)
    for name in ("quantize_pt2e", "quantizer"):  # which are put there, too
        monkeypatch.setattr(torch.ao.quantization, name, None, raising=False)
    found = stand_ins.find_spec
    missing = {"caffe2", *stand_ins.STAND_INS, "torch.ao.quantization.quantizer"}
    monkeypatch.setattr(stand_ins, "find_spec", lambda name: None if name in missing else found(name))
    return stand_ins.install_stand_ins()


def test_each_missing_module_is_stood_in_for_and_named(installed):
    assert installed == list(stand_ins.STAND_INS)


def test_the_folder_of_a_package_and_its_version_are_found(installed):
    resources = importlib.import_module("pkg_resources")
    here = ROOT / "d2go_fbnetv5"
    assert resources.resource_filename("d2go_fbnetv5", "") == str(here)
    assert resources.resource_filename("d2go_fbnetv5.arch.blocks", "x/y") == str(here / "arch" / "x" / "y")
    assert resources.get_distribution("torch").version


def test_what_is_gone_for_good_says_which_key_asked_for_it(installed):
    quantize = importlib.import_module("torch.ao.quantization.quantize_pt2e")
    with pytest.raises(InputError, match=r"QUANTIZATION.PT2E is True, .* no longer has prepare_pt2e: False"):
        quantize.prepare_pt2e(None, None)


def test_modules_that_are_there_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(stand_ins, "find_spec", lambda name: object())
    assert stand_ins.install_stand_ins() == []


@pytest.mark.parametrize("arguments", [[], ["lightning_train_net"], ["--help"]])
def test_another_command_is_refused_in_one_sentence(arguments, capsys):
    assert main(arguments) == 2
    assert "allowed: train_net, exporter, evaluator" in capsys.readouterr().err


def test_an_error_of_the_users_ends_a_command_with_status_2(d2go, tmp_path):
    program = [sys.executable, "-m", "d2go_fbnetv5.d2go", "train_net"]
    runner = ["--runner", "d2go_fbnetv5.runner.FBNetV5Runner", "--config-file", "configs/det/det_digits.yaml"]
    run = subprocess.run(
        [*program, *runner, "--output-dir", str(tmp_path), "MODEL.FBNETV5.TOPOLOGY", "nowhere.json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    assert run.returncode == 2, run.stderr[-3000:]
    assert "names nowhere.json, which does not exist" in run.stderr.splitlines()[-1]


def test_lightnings_tasks_are_another_thing(d2go):
    from d2go_fbnetv5.runner import FBNetV5Runner

    with pytest.raises(
        InputError, match="lightning_train_net has the runner FBNetV5Runner, .* train_net takes it"
    ):
        FBNetV5Runner.from_config(FBNetV5Runner.get_default_cfg())
