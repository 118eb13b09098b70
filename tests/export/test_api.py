"""What an export writes, and what it must not do: leave rests, replace what is not its own, export what is wrong."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from exported import TOPOLOGY, tiny

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.export import CheckFailedError, api, export_model, get_format
from d2go_fbnetv5.export.measure.check import Report
from d2go_fbnetv5.models import ImageClassifier, LiteRCNN


def test_a_failing_check_says_where_and_keeps_what_was_there(tmp_path, monkeypatch):
    model = tiny(ImageClassifier)
    (tmp_path / "model.pt").write_text("of an earlier export")
    (tmp_path / "model.json").write_text('{"format": "torchscript"}')
    format = get_format("torchscript")
    load = format.load
    monkeypatch.setattr(
        format,
        "load",
        lambda *args: lambda image: [load(*args)(image)[0] + (image.shape[2] == 64) / 50],
    )
    with pytest.raises(CheckFailedError, match=r"image 4 \(64 x 96\): class probabilities differ by 0.02"):
        export_model(model, "torchscript", tmp_path, (96, 64))
    names = ["model.json", "model.pt", "model.unchecked.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "model.pt").read_text() == "of an earlier export"


@pytest.mark.parametrize(
    ("kind", "format", "size", "message"),
    [
        (
            ImageClassifier,
            "onyx",
            (96, 96),
            "unknown format 'onyx'; allowed are executorch, onnx, torchscript",
        ),
        (
            ImageClassifier,
            "torchscript",
            (32, 96),
            "size 32x96 is too small for Path 3: .* 64 pixels or more",
        ),
        (LiteRCNN, "torchscript", (96, 100), "size 96x100: allowed for a LiteRCNN are multiples of 32"),
    ],
)
def test_wrong_input_is_refused(kind, format, size, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(kind(Backbone("N", TOPOLOGY, kind.in_features), 5), format, tmp_path / "new", size)
    assert not (tmp_path / "new").exists()


def test_a_trainings_description_is_not_overwritten(tmp_path):
    (tmp_path / "model.json").write_text('{"task": "cls", "names": []}')
    with pytest.raises(ValueError, match="choose another folder"):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path)
    assert "names" in (tmp_path / "model.json").read_text()


def test_a_missing_package_is_named_with_pips_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"format onnx needs .*pip install 'd2go_fbnetv5\[export\]'"):
        export_model(tiny(ImageClassifier), "onnx", tmp_path)


def test_a_file_without_an_exports_description_is_not_overwritten(tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(ValueError, match="model.pt is there and is not of an export; choose another folder"):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path)
    assert (tmp_path / "model.pt").read_text() == "mine"


@pytest.mark.parametrize("content", ["null", "[]", "{", "", '{"names": ["a"]}', "[" * 9999])
def test_a_file_that_is_no_exports_is_not_overwritten(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match="model.json is not of an export; choose another folder"):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path)
    assert (tmp_path / "model.json").read_text() == content


def test_a_model_with_nan_is_not_exported(tmp_path):
    model = tiny(LiteRCNN)
    model.roi_head.predictor.classes.bias.data[0] = float("nan")
    with pytest.raises(CheckFailedError, match="'roi_head.predictor.classes.bias' is not finite"):
        export_model(model, "torchscript", tmp_path, (96, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["model.unchecked.pt"]


def test_a_copy_on_the_cpu_is_exported_and_the_model_stays_as_it_was(tmp_path, monkeypatch):
    model = tiny(ImageClassifier).train()
    moved = []
    cpu = torch.nn.Module.cpu
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda self: (moved.append(self), cpu(self))[1])
    export_model(model, "torchscript", tmp_path, (96, 64))
    assert model.training and len(moved) == 1 and moved[0] is not model


@pytest.mark.parametrize("full", ["model.unchecked.pt", "model.json"])
def test_a_full_disk_leaves_the_earlier_export_and_no_rest(tmp_path, monkeypatch, full):
    model = tiny(ImageClassifier)
    export_model(model, "torchscript", tmp_path, (96, 64))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def write_bytes(path, data):
        if path.name.startswith(full):
            write(path, data[:100])
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(
        Path, "write_text", lambda path, text, encoding: path.write_bytes(text.encode(encoding))
    )
    model.head.fc.bias.data += 1
    with pytest.raises(OSError, match="No space left on device"):
        export_model(model, "torchscript", tmp_path, (96, 64))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_leaves_no_file_beside_the_description_of_another_and_the_next_export_goes_on(
    tmp_path, monkeypatch
):
    model, format, replace, moments = tiny(ImageClassifier), get_format("torchscript"), os.replace, []
    monkeypatch.setattr(api, "check", lambda *args: Report())
    monkeypatch.setattr(format, "load", lambda *args: None)
    monkeypatch.setattr(api, "describe", lambda model, size, names, *rest: {"classes": names})

    def export(folder, name):
        monkeypatch.setattr(
            format, "export", lambda module, path, spec: (path.write_text(name), {"dynamic": False})[1]
        )
        export_model(model, "torchscript", folder, (96, 64), names=[name] * model.num_classes)

    def seen(source, target):  # a kill leaves what is there before a file gets its name
        moments.append(shutil.copytree(tmp_path / "out", tmp_path / f"killed{len(moments)}"))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", seen)
        export(tmp_path / "out", "cat")
        export(tmp_path / "out", "dog")
    assert len(moments) == 6
    for folder in moments:
        if (folder / "model.json").exists():
            described = json.loads((folder / "model.json").read_text())
            file = folder / described["file"]
            assert not file.exists() or file.read_text() == described["classes"][0]
        export(folder, "emu")
        assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt"]
        assert (folder / "model.pt").read_text() == "emu"


def test_an_interrupted_check_leaves_no_rest(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path, (96, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(99), bytes(5000)])
@pytest.mark.parametrize("format", ["torchscript", "onnx", "executorch"])
def test_a_broken_file_is_one_sentence(tmp_path, format, content):
    if format != "torchscript":
        pytest.importorskip({"onnx": "onnxruntime", "executorch": "executorch"}[format])
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model: .* cannot load it"):
        get_format(format).load(path, {"image_sizes": {"min": [64, 64], "max": [64, 64]}})
