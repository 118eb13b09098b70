"""ONNX files compute what the models do."""

import pytest
import torch
from exported import KINDS, assert_is_the_model, few_detections, needs_onnx, tiny

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.export import export_model, get_format
from d2go_fbnetv5.models import ImageClassifier


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(kind, tmp_path):
    model = tiny(kind)
    exported = export_model(model, "onnx", tmp_path, (96, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx"]
    assert exported.description["opset"] >= 18
    assert_is_the_model(model, exported.path, tmp_path)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_of_one_size(kind, tmp_path):
    exported = export_model(tiny(kind), "onnx", tmp_path, (96, 64), fixed_size=True)
    assert exported.report.sizes == {(96, 64)} and not exported.description["dynamic"]
    assert exported.description["image_sizes"] == {"min": [96, 64], "max": [96, 64]}
    with pytest.raises(Exception, match="image"):
        get_format("onnx").load(exported.path)(torch.zeros(1, 3, 96, 96))


@needs_onnx
@pytest.mark.slow
def test_onnx_of_a_family_that_pads_unusually(tmp_path):
    """Its features are of 4 h, 2 h - 1 and h - 1 rows, which fusion looks at; they must not be the example's."""
    torch.manual_seed(0)
    model = ImageClassifier(Backbone("A", Topology([[1, 1, 0, 1]]), ImageClassifier.in_features), 5).eval()
    model.requires_grad_(False).head.fc.weight.normal_(0, 0.3)
    exported = export_model(model, "onnx", tmp_path, (128, 96))
    assert exported.report.sizes == {(128, 96), (96, 128)} and exported.report.worst < 1e-5


@needs_onnx
@pytest.mark.slow
def test_onnx_of_no_box_and_of_one(tmp_path):
    for model, counts in few_detections():
        assert_is_the_model(model, export_model(model, "onnx", tmp_path, (96, 64)).path, tmp_path, counts)
