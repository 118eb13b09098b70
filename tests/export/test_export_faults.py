"""What an export must not do: pass a check that compared nothing, leave rests, or take settings of any content."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_export_model import images, tiny
from test_host import SETTINGS

from d2go_fbnetv5.export import CheckFailedError, api, export_model, get_format
from d2go_fbnetv5.export.host import HostSettings
from d2go_fbnetv5.export.measure.check import check
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN

NAN = float("nan")


def probing(model, change=lambda *found: found):
    module = inference_module(model)
    module.least_score.fill_(0.0)
    return lambda image: change(*module(image))


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_compared_by_detections_of_any_score():
    model = tiny(LiteRCNN, score_threshold=0.9999)
    shown = images((96, 64), (64, 128))
    run = inference_module(model)
    report = check(model, run, shown, probe=lambda: probing(model))
    assert report.detections == (0, 0) and report.agreement > 0.9
    assert model.roi_head.score_threshold == 0.9999
    for change in (
        lambda b, s, k: (b + 20, s, k),
        lambda b, s, k: (b, s, (k + 1) % 5),
        lambda b, s, k: (b, s * 0.9, k),
        lambda b, s, k: (b, s * 0, k),
    ):
        changed = probing(model, change)
        for int8 in (False, True):
            with pytest.raises(CheckFailedError, match="no detection in 2 images, and of those of any score"):
                check(model, run, shown, int8, lambda run=changed: run)
    with pytest.raises(CheckFailedError, match="no detection in 2 images"):
        check(model, run, shown)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ImageClassifier, LiteRCNN, LiteMaskFormer])
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_not_finite_fails_in_the_model_and_in_the_file(kind, int8):
    model, shown = tiny(kind), images((96, 64))
    module = inference_module(model)

    def broken(image):
        found = module(image)
        first, *rest = found if isinstance(found, tuple) else (found,)
        return first.index_fill(0, torch.tensor([0]), NAN), *rest

    with pytest.raises(CheckFailedError, match=r"image 0 \(96 x 64\): the file's output is not finite"):
        check(model, broken, shown, int8)
    next(model.backbone.parameters()).data.flatten()[0] = NAN
    with pytest.raises(CheckFailedError, match="the model's weight 'backbone.stage0.* is not finite"):
        check(model, inference_module(model), shown, int8)


def test_a_model_with_nan_is_not_exported(tmp_path):
    model = tiny(LiteRCNN)
    model.roi_head.predictor.classes.bias.data[0] = NAN
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


def test_an_interrupted_check_leaves_no_rest(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path, (96, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["null", "[]", "{", "", '{"names": ["a"]}', "[" * 9999])
def test_a_file_that_is_no_exports_is_not_overwritten(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match="model.json is not of an export; choose another folder"):
        export_model(tiny(ImageClassifier), "torchscript", tmp_path)
    assert (tmp_path / "model.json").read_text() == content


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(99), bytes(5000)])
@pytest.mark.parametrize("format", ["torchscript", "onnx", "executorch"])
def test_a_broken_file_is_one_sentence(tmp_path, format, content):
    if format != "torchscript":
        pytest.importorskip({"onnx": "onnxruntime", "executorch": "executorch"}[format])
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model: .* cannot load it"):
        get_format(format).load(path, {"image_sizes": {"min": [64, 64], "max": [64, 64]}})


@pytest.mark.parametrize("value", [0, -8, "8", 8.5, True, None, NAN, 10**9])
@pytest.mark.parametrize(
    "name", ["stride", "resolution", "num_classes", "max_detections", "proposals_after_nms"]
)
def test_counts_of_a_hosts_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, allowed is a whole number from 1 to 100000"):
        HostSettings.from_json({**SETTINGS.to_json(), name: value})


@pytest.mark.parametrize("value", [-0.1, 1.5, NAN, "0.5", None, True])
@pytest.mark.parametrize("name", ["iou", "proposals_iou", "score_threshold"])
def test_shares_of_a_hosts_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, allowed is a number from 0 to 1"):
        HostSettings.from_json({**SETTINGS.to_json(), name: value})
    with pytest.raises(ValueError, match=name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize(
    "anchors", [[], None, 5, "abcd", [[1, 2, 3]], [[0, 0, NAN, 4]], [[0, 0, 0, 4]], [["0", 0, 4, 4]], [None]]
)
def test_anchors_of_a_hosts_settings_are_checked(anchors):
    with pytest.raises(ValueError, match="cell_anchors"):
        HostSettings.from_json({**SETTINGS.to_json(), "cell_anchors": anchors})


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_settings_that_are_no_object_are_one_sentence(content):
    with pytest.raises(ValueError, match="the detector's settings are"):
        HostSettings.from_json(json.loads(json.dumps(content)))
