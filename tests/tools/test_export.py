"""The command line of the exporter: one sentence and a status for whatever goes wrong."""

import pytest
import torch
from d2go_fbnetv5.tools.export import main

from d2go_fbnetv5.export import CheckFailedError
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
            "a fixed size is for the formats executorch and onnx, found torchscript",
        ),
        (["--format", "torchscript", "--int8"], None, "--int8 is for --format executorch"),
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
