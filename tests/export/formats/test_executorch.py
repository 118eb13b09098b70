"""Whole models as ExecuTorch programs, run in a process that knows nothing of this package."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import needs_executorch
from lively import make_lively

from d2go_fbnetv5.arch import Backbone, Family, Topology
from d2go_fbnetv5.arch.families import Layer, PoolSpec
from d2go_fbnetv5.export import ExportSpec, ImageSizes, get_format
from d2go_fbnetv5.export.formats.executorch import (
    float_layers,
    program_methods,
    quantized_methods,
)
from d2go_fbnetv5.export.formats.executorch_programs import lower_programs
from d2go_fbnetv5.export.host import HostedDetector, HostSettings
from d2go_fbnetv5.export.images import padded_image
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN

FORMAT = get_format("executorch")
TINY = Family(
    "tiny_export",
    96,
    (
        (Layer("conv_k3_hs", 8, 2, 1), Layer("ir_k3_hs", 12, 2, 1, 2)),
        (Layer("ir_k3_hs", 16, 2, 1, 2), Layer("ir_k3_hs", 16, 1, 1, 2)),
        (Layer("ir_k3_sehsig_hs", 24, 2, 1, 2), Layer("ir_k3_hs", 24, 1, 1, 2)),
        (Layer("ir_k3_hs", 32, 2, 1, 2), Layer("ir_k3_hs", 32, 1, 1, 2)),
    ),
    PoolSpec("ir_pool_hs", 64, 2),
)
# Every kind of fusion: up and down, by one path and by several.
TOPOLOGY = Topology([[0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
OPTIONS = {
    ImageClassifier: {},
    LiteRCNN: {"score_threshold": 0.0, "max_detections": 10, "test_proposals": (50, 20)},
    LiteMaskFormer: {"num_queries": 6, "dim": 32, "num_heads": 4, "feedforward_dim": 32},
}


def tiny(kind):
    """A model of 5 classes whose outputs depend on the image."""
    return make_lively(untrained(kind), images(*[(96, 96)] * 4))


def untrained(kind):
    """Of 5 classes. Every layer counts: no norm is zero, no output constant; all activations are of like size."""
    torch.manual_seed(0)
    model = kind(Backbone(TINY, TOPOLOGY, kind.in_features), 5, **OPTIONS[kind]).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    if kind is LiteRCNN:
        model.rpn.head.objectness.weight.normal_(0, 0.5)
        model.roi_head.predictor.classes.weight.normal_(0, 0.5)
    if kind is ImageClassifier:
        model.head.fc.weight.normal_(0, 0.3)
    return model


@pytest.fixture
def run(tmp_path):
    """Runs [method, inputs...] of a file in a fresh process."""

    def go(file, calls):
        inputs, outputs = tmp_path / "in.pt", tmp_path / "out.pt"
        torch.save(calls, inputs)
        script = Path(__file__).parents[1] / "run_program.py"
        command = [sys.executable, str(script), str(file), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return torch.load(outputs, weights_only=True)

    return go


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize("kind", [ImageClassifier, LiteMaskFormer])
def test_one_method(kind, run, tmp_path):
    model = tiny(kind)
    module = inference_module(model)
    file = tmp_path / "model.pte"
    names = ("scores",) if kind is ImageClassifier else ("classes", "masks")
    described = FORMAT.export(module, file, ExportSpec((96, 96), 64, names))
    assert described == {
        "dynamic": True,
        "image_sizes": {"min": [64, 64], "max": [192, 192], "multiple_of": 32},
        "int8": False,
        "methods": {"forward": {"input": "image", "outputs": list(names)}},
    }
    shown = [padded_image(model, image) for image in images((96, 96), (64, 192), (160, 128))]
    expected = [_outputs(module(image)) for image in shown]
    assert max(float(x.max()) for x, *_ in expected) > 0.25  # the image matters
    found = run(file, [["forward", image] for image in shown])
    ours = FORMAT.load(file, described)
    for image, outputs, right in zip(shown, found, expected, strict=True):
        torch.testing.assert_close(outputs, right, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(list(ours(image)), outputs)


@needs_executorch
@pytest.mark.slow
def test_a_file_of_one_size_runs_in_one_piece(run, tmp_path):
    model = tiny(ImageClassifier)
    module = inference_module(model)
    fixed, flexible = tmp_path / "fixed.pte", tmp_path / "flexible.pte"
    described = FORMAT.export(module, fixed, ExportSpec((96, 128), 64, ("scores",), fixed=True))
    assert not described["dynamic"] and described["image_sizes"] == {"min": [96, 128], "max": [96, 128]}
    FORMAT.export(module, flexible, ExportSpec((96, 128), 64, ("scores",)))
    upsampling = b"aten::upsample_nearest2d"  # which XNNPACK leaves to others
    assert upsampling in flexible.read_bytes() and upsampling not in fixed.read_bytes()
    (image,) = images((96, 128))
    (outputs,) = run(fixed, [["forward", image[None]]])
    torch.testing.assert_close(outputs, [module(image[None])], atol=1e-4, rtol=1e-4)


def _outputs(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@needs_executorch
@pytest.mark.slow
def test_detector(run, tmp_path):
    model = tiny(LiteRCNN)
    module = inference_module(model)
    file = tmp_path / "model.pte"
    described = FORMAT.export(module, file, ExportSpec((96, 96), 64, ("boxes", "scores", "labels")))
    assert list(described["methods"]) == ["proposals", "boxes"]
    fresh = HostedDetector(
        HostSettings.from_json(described["detector"]),
        lambda image: run(file, [["proposals", image]])[0],
        lambda regions: run(file, [["boxes", regions]])[0],
    )
    for image in images((96, 96), (70, 150)):
        expected = model([{"image": image}])[0]
        boxes, scores, labels = fresh(padded_image(model, image), tuple(image.shape[-2:]))
        torch.testing.assert_close(scores, expected["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, expected["boxes"], atol=1e-2, rtol=0)
        assert torch.equal(labels, expected["labels"]) and len(labels) == 10
    image = padded_image(model, images((96, 160))[0])
    for found, right in zip(FORMAT.load(file, described)(image), module(image), strict=True):
        torch.testing.assert_close(found, right, atol=1e-2, rtol=0)
    # Any number of regions from one on, on both sides of 16.
    regions = [torch.randn(count, 16, 6, 6) for count in (1, 2, 16, 20)]
    for x, found in zip(regions, run(file, [["boxes", x] for x in regions]), strict=True):
        torch.testing.assert_close(found, list(module.boxes(x)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@needs_executorch
@pytest.mark.parametrize("kind", [ImageClassifier, LiteMaskFormer, LiteRCNN])
def test_int8_graphs_stay_close(kind):
    model = untrained(kind)
    module = inference_module(model)
    methods = program_methods(module, (96, 96), ImageSizes.of((96, 96), 64))
    shown = [padded_image(model, image) for image in images(*[(96, 96)] * 4, (96, 160))]
    graphs = quantized_methods(module, methods, shown)
    assert list(graphs) == list(methods)
    assert (
        len(lower_programs(graphs)) > 10_000
    )  # XNNPACK refuses int8 layers whose result anything else looks at
    for name, (part, example, _) in methods.items():
        x = torch.randn_like(example[0]) if name == "boxes" else shown[-1]
        exact, found = part(x), graphs[name].module()(x)
        exact, found = _outputs(exact), _outputs(found)
        for a, b in zip(exact, found, strict=True):
            assert 0 < (a - b).abs().mean() < 0.15 * (a - a.mean()).abs().mean()


@needs_executorch
def test_a_detector_that_proposes_nothing_cannot_be_calibrated():
    model = tiny(LiteRCNN)
    model.rpn.head.deltas.bias.fill_(1e6)  # every box is outside
    module = inference_module(model)
    methods = program_methods(module, (96, 96), ImageSizes.of((96, 96), 64))
    with pytest.raises(ValueError, match="no box in any calibration image"):
        quantized_methods(module, methods, [torch.zeros(1, 3, 96, 96)])


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (ImageClassifier, ["SqueezeExcite", "Linear"]),
        (LiteRCNN, ["SqueezeExcite", "Linear", "objectness", "deltas"]),
        (LiteMaskFormer, ["SqueezeExcite", "DecoderLayer", "SegmentationModule", "Linear"]),
    ],
)
def test_what_stays_in_floats(kind, layers):
    assert float_layers(inference_module(tiny(kind))) == layers
