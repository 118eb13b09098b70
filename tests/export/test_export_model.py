"""Exported files against their models, in a process that knows nothing of this package."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from lively import make_lively
from torch.nn import functional as F
from torchvision.ops import box_iou

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.export import CheckFailedError, export_model, get_format
from d2go_fbnetv5.export.measure.check import check
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN
from d2go_fbnetv5.models.lite_maskformer import weighed_masks

TOPOLOGY = Topology([[0, 1, 0, 1], [1, 1, 0, 0]])
OPTIONS = {
    ImageClassifier: {},
    LiteRCNN: {"max_detections": 10, "test_proposals": (50, 20), "anchor_sizes": (12, 24, 48)},
    LiteMaskFormer: {"num_queries": 6, "dim": 32, "num_heads": 4, "feedforward_dim": 32},
}
KINDS = list(OPTIONS)
SIZES = ((96, 64), (64, 128))
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)

# Runs model.pt or model.onnx on the inputs of a file, and refuses to know this package.
RUN = """
import sys, torch
model, inputs, outputs = sys.argv[1:]
if model.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    run = lambda image: [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]
else:
    import torchvision
    run = torch.jit.load(model)
with torch.no_grad():
    found = [run(image) for image in torch.load(inputs, weights_only=True)]
assert not any(name.startswith("d2go_fbnetv5") for name in sys.modules)
torch.save([list(x) if isinstance(x, (list, tuple)) else [x] for x in found], outputs)
"""


def tiny(kind, **options):
    """A model of 5 classes whose outputs depend on the image."""
    torch.manual_seed(0)
    model = kind(Backbone("N", TOPOLOGY, kind.in_features), 5, **{**OPTIONS[kind], **options})
    return make_lively(model, [image[0] for image in images(*[(96, 96)] * 4)])


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    coarse = [
        torch.rand(1, 3, 4, 6, generator=generator) * 255 for _ in sizes
    ]  # noise averages out in a region
    return [F.interpolate(image, size, mode="bilinear") for image, size in zip(coarse, sizes, strict=True)]


def run_elsewhere(file, shown, folder):
    inputs, outputs = folder / "in.pt", folder / "out.pt"
    torch.save(shown, inputs)
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(file), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(outputs, weights_only=True)


def assert_is_the_model(model, file, folder, counts=None):
    """The file's outputs are the eager model's; ``counts``: of detections."""
    shown = images(*SIZES)
    found = run_elsewhere(file, shown, folder)
    for image, outputs in zip(shown, found, strict=True):
        expected = model([{"image": image[0]}])[0]
        if isinstance(model, ImageClassifier):
            torch.testing.assert_close(outputs[0][0], expected["class_scores"], atol=1e-4, rtol=0)
        elif isinstance(model, LiteMaskFormer):
            classes, masks = outputs
            height, width = image.shape[-2:]
            assert classes.shape == (1, 6, 5) and masks.shape == (1, 6, height // 8, width // 8)
            scores = weighed_masks(classes[0], masks[0], (height, width), (height, width))
            (right,) = model.pixel_scores([{"image": image[0]}])
            torch.testing.assert_close(scores, right, atol=1e-4, rtol=0)
            assert torch.equal(scores.argmax(0), expected["sem_seg"])
        else:
            boxes, scores, labels = outputs
            count = len(expected["boxes"])
            assert counts is None or count in counts
            assert boxes.shape == (model.roi_head.max_detections, 4) and labels.dtype == torch.int64
            assert (scores > 0).sum() == (labels >= 0).sum() == count
            overlap = box_iou(boxes[:count], expected["boxes"])
            same = labels[:count, None] == expected["labels"]
            close = (scores[:count, None] - expected["scores"]).abs() <= 1e-3
            assert ((overlap >= 0.99) & same & close).any(1).all()


@pytest.mark.parametrize("kind", KINDS)
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


def best_scores(model):
    """Of each image's best two detections."""
    return torch.stack([model([{"image": image[0]}])[0]["scores"][:2] for image in images(*SIZES)])


def few_detections():
    """A detector that finds none, and one that finds one or none."""
    scores = best_scores(tiny(LiteRCNN))
    assert (scores[:, 0] > scores[:, 1] + 1e-3).all()
    one = float(scores[:, 1].max() + scores[:, 0].max()) / 2
    return [(tiny(LiteRCNN, score_threshold=0.9999), {0}), (tiny(LiteRCNN, score_threshold=one), {0, 1})]


@pytest.mark.slow
def test_torchscript_of_no_box_and_of_one(tmp_path):
    for model, counts in few_detections():
        assert_is_the_model(
            model, export_model(model, "torchscript", tmp_path, (96, 64)).path, tmp_path, counts
        )


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


def test_a_classifier_takes_any_size_in_torchscript(tmp_path):
    model = tiny(ImageClassifier)
    exported = export_model(model, "torchscript", tmp_path, (75, 101))
    (image,) = images((83, 70))
    ((scores,),) = run_elsewhere(exported.path, [image], tmp_path)
    torch.testing.assert_close(scores[0], model([{"image": image[0]}])[0]["class_scores"], atol=1e-4, rtol=0)


def test_a_failing_check_says_where_and_keeps_what_was_there(tmp_path, monkeypatch):
    model = tiny(ImageClassifier)
    (tmp_path / "model.pt").write_text("mine")
    format = get_format("torchscript")
    load = format.load
    monkeypatch.setattr(
        format,
        "load",
        lambda *args: lambda image: [load(*args)(image)[0] + (image.shape[2] == 64) / 50],
    )
    with pytest.raises(CheckFailedError, match=r"image 4 \(64 x 96\): class probabilities differ by 0.02"):
        export_model(model, "torchscript", tmp_path, (96, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model.unchecked.pt"]
    assert (tmp_path / "model.pt").read_text() == "mine"


@pytest.mark.parametrize(("magnitude", "passes"), [(1.0, False), (3.0, True)])
def test_scores_over_1_may_differ_by_a_part_of_the_greatest(magnitude, passes, monkeypatch):
    model = tiny(LiteMaskFormer)
    expected = torch.full((5, 96, 64), magnitude / 2)
    expected[0] = magnitude
    monkeypatch.setattr("d2go_fbnetv5.export.measure.check.segment_scores", lambda *args: expected)
    monkeypatch.setattr("d2go_fbnetv5.export.measure.check.weighed_masks", lambda *args: expected + 2e-4)
    run, shown = inference_module(model), images((96, 64))
    if passes:
        assert check(model, run, shown).worst == pytest.approx(2e-4, rel=0.01)
    else:
        with pytest.raises(CheckFailedError, match="class scores differ by 0.0002, allowed is 0.0001"):
            check(model, run, shown)


def detector_run(model, change):
    module = inference_module(model)
    return lambda image: change(*module(image))


def test_detections_match_in_any_order_but_not_moved_missing_or_relabelled():
    model = tiny(LiteRCNN)
    shown = images(*SIZES)
    order = torch.arange(model.roi_head.max_detections - 1, -1, -1)
    report = check(model, detector_run(model, lambda b, s, k: (b[order], s[order], k[order])), shown)
    assert report.overlap > 0.999 and report.agreement == 1
    for change in (
        lambda b, s, k: (b + 2, s, k),
        lambda b, s, k: (b, s * 0.9, k),
        lambda b, s, k: (b, s, (k + 1) % 5),
        lambda b, s, k: (b[1:], s[1:], k[1:]),
        lambda b, s, k: (b, s * 0, k),
    ):
        with pytest.raises(CheckFailedError, match="counterpart"):
            check(model, detector_run(model, change), shown)


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
