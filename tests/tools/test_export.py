"""The command line of the exporter: one sentence and a status for whatever goes wrong."""

import os
import subprocess

import pytest
import torch
from d2go_fbnetv5.tools.export import main

from d2go_fbnetv5.export import CheckFailedError, get_format, list_formats
from d2go_fbnetv5.zoo import create_model

NAME = "FBNetV5-N-CLS"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(create_model(NAME, num_classes=3).state_dict(), path)
    return path


def call(*args, output=None):
    return main([*map(str, args), *(["--output", str(output)] if output else [])])


def test_exports_a_model_of_the_zoo(weights, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nemu\n")
    args = ("--model", NAME, "--weights", weights, "--names", names, "--format", "torchscript")
    assert call(*args, "--size", "64x96", output=tmp_path / "out") == 0
    assert "8 images of 64x96 and 64x128 at most" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.pt").is_file()
    assert '"emu"' in (tmp_path / "out" / "model.json").read_text()


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("args", "harm", "message"),
    [
        (["--format", "onyx"], None, "allowed are executorch, onnx, torchscript"),
        (["--format", "torchscript", "--model", "FBNetV5-N-DET"], None, "not of this model"),
        (["--format", "torchscript"], truncated, "damaged or cut off"),
        (["--format", "torchscript", "--size", "32x32"], None, "too small for Path 3"),
        (["--format", "torchscript", "--size", "10016x10016"], None, "allowed are 16777216 pixels in all"),
        (["--format", "torchscript", "--size", "large"], None, "expected HEIGHTxWIDTH"),
        (
            ["--format", "torchscript", "--fixed-size"],
            None,
            "the format torchscript has no fixed size; allowed are executorch, onnx",
        ),
        (
            ["--format", "torchscript", "--int8"],
            None,
            "the format torchscript has no int8; allowed are executorch",
        ),
        (["--format", "executorch", "--int8"], None, "--int8 needs --calibration-data"),
        (
            ["--format", "torchscript", "--calibration-data", "nowhere"],
            None,
            "neither a folder nor a data set",
        ),
        (["--format", "torchscript", "--run", "nowhere"], None, "one of --run DIR and --model NAME"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(args, harm, message, weights, tmp_path, capsys):
    if harm is not None:
        harm(weights)
    output = tmp_path / "out"
    given = ["--model", NAME, "--weights", weights, "--num-classes", 3, *args]
    assert call(*given, output=output) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("export: ") and error.count("\n") == 1
    assert not output.exists()


def test_a_failing_check_is_status_1(weights, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise CheckFailedError("image 3 (64 x 96): class probabilities differ by 0.02, allowed is 0.0001")

    monkeypatch.setattr("d2go_fbnetv5.export.api.check", fail)
    args = ("--model", NAME, "--weights", weights, "--num-classes", 3, "--format", "torchscript")
    assert call(*args, output=tmp_path / "out") == 1
    assert "image 3 (64 x 96): class probabilities differ by 0.02" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.unchecked.pt"]


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of its own that has room for 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("format", list_formats())
def test_a_full_disk_is_one_sentence_that_names_the_file(weights, full_disk, capfd, format):
    for package in get_format(format).packages:
        pytest.importorskip(package)
    output = full_disk / "out"
    args = ("--model", NAME, "--weights", weights, "--num-classes", 3, "--format", format, "--size", "64x64")
    capfd.readouterr()
    assert call(*args, output=output) == 2
    path = output / f"model.unchecked{get_format(format).suffix}"
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == f"export: [Errno 28] No space left on device: '{path}'"
    assert list(output.iterdir()) == []
