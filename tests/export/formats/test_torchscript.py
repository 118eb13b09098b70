"""TorchScript files compute what the models do, at any size."""

import json

import pytest
import torch
from exported import WITH_SLOW_DETECTOR, assert_is_the_model, few_detections, images, run_elsewhere, tiny

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.export import export_model
from d2go_fbnetv5.models import ImageClassifier


@pytest.mark.parametrize("kind", WITH_SLOW_DETECTOR)
def test_torchscript(kind, tmp_path):
    model = tiny(kind)
    exported = export_model(model, "torchscript", tmp_path, (96, 64), names="abcde")
    assert exported.path == tmp_path / "model.pt"
    described = json.loads((tmp_path / "model.json").read_text())
    assert described == json.loads(json.dumps(exported.description))
    assert described["classes"] == list("abcde") and described["format"] == "torchscript"
    assert described["check"]["sizes"] == [[64, 96], [96, 64]] and described["check"]["same_class"] == 1
    assert Topology.from_dict(described["topology"] | {}) == model.backbone.topology
    assert described["flops"]["total"] == sum(described["flops"]["parts"].values()) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]
    assert_is_the_model(model, exported.path, tmp_path)


@pytest.mark.slow
def test_torchscript_of_no_box_and_of_one(tmp_path):
    for model, counts in few_detections():
        assert_is_the_model(
            model, export_model(model, "torchscript", tmp_path, (96, 64)).path, tmp_path, counts
        )


def test_a_classifier_takes_any_size_in_torchscript(tmp_path):
    model = tiny(ImageClassifier)
    exported = export_model(model, "torchscript", tmp_path, (75, 101))
    (image,) = images((83, 70))
    ((scores,),) = run_elsewhere(exported.path, [image], tmp_path)
    torch.testing.assert_close(scores[0], model([{"image": image[0]}])[0]["class_scores"], atol=1e-4, rtol=0)
