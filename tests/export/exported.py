"""Small models to export, and files beside them, in a process that knows nothing of this package."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from lively import make_lively
from torch.nn import functional as F
from torchvision.ops import box_iou

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN
from d2go_fbnetv5.models.lite_maskformer import weighed_masks

TOPOLOGY = Topology([[0, 1, 0, 1], [1, 1, 0, 0]])
OPTIONS = {
    ImageClassifier: {},
    LiteRCNN: {"max_detections": 10, "test_proposals": (50, 20), "anchor_sizes": (12, 24, 48)},
    LiteMaskFormer: {"num_queries": 6, "dim": 32, "num_heads": 4, "feedforward_dim": 32},
}
KINDS = list(OPTIONS)
# Scripting the detector takes a quarter of a minute.
WITH_SLOW_DETECTOR = [
    pytest.param(kind, marks=pytest.mark.slow) if kind is LiteRCNN else kind for kind in KINDS
]
SIZES = ((96, 64), (64, 128))
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)

needs_executorch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("executorch", "torchao")),
    reason="executorch and torchao are not installed",
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


def best_scores(model):
    """Of each image's best two detections."""
    return torch.stack([model([{"image": image[0]}])[0]["scores"][:2] for image in images(*SIZES)])


def few_detections():
    """A detector that finds none, and one that finds one or none."""
    scores = best_scores(tiny(LiteRCNN))
    assert (scores[:, 0] > scores[:, 1] + 1e-3).all()
    one = float(scores[:, 1].max() + scores[:, 0].max()) / 2
    return [(tiny(LiteRCNN, score_threshold=0.9999), {0}), (tiny(LiteRCNN, score_threshold=one), {0, 1})]
