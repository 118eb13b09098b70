"""Files take the sizes that model.json names, give there what the model does, and refuse all others."""

import json

import pytest
import torch
from exported import KINDS, WITH_SLOW_DETECTOR, images, needs_executorch, needs_onnx, tiny
from torchvision.ops import box_iou

from d2go_fbnetv5.export import export_model, get_format
from d2go_fbnetv5.export.image_sizes import ImageSizes, guarded
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer
from d2go_fbnetv5.models.lite_maskformer import weighed_masks

GOOD = ((64, 64), (64, 160), (128, 96))  # the least, and others
BAD = ((32, 32), (96, 32), (32, 96), (100, 130), (96, 100), (16, 16))


def assert_equal(model, image, outputs):
    (expected,) = model([{"image": image[0]}])
    if isinstance(model, ImageClassifier):
        torch.testing.assert_close(outputs[0][0], expected["class_scores"], atol=1e-4, rtol=0)
    elif isinstance(model, LiteMaskFormer):
        size = tuple(image.shape[-2:])
        (right,) = model.pixel_scores([{"image": image[0]}])
        torch.testing.assert_close(
            weighed_masks(outputs[0][0], outputs[1][0], size, size), right, atol=1e-4, rtol=0
        )
    else:
        boxes, scores, _ = outputs
        boxes = boxes[scores > 0]
        assert len(boxes) == len(expected["boxes"]) > 0
        assert (box_iou(boxes, expected["boxes"]).max(1).values > 0.99).all()


@pytest.mark.parametrize("kind", WITH_SLOW_DETECTOR)
def test_torchscript_refuses_what_the_model_would_pad_or_a_classifier_pads_it(kind):
    model = tiny(kind)
    run = torch.jit.script(inference_module(model, kind is ImageClassifier))
    for image in images(*GOOD):
        outputs = run(image)
        assert_equal(model, image, outputs if isinstance(outputs, tuple) else (outputs,))
    for image in images(*BAD):
        if kind is ImageClassifier:
            assert_equal(model, image, (run(image),))
        else:
            height, width = image.shape[-2:]
            with pytest.raises(
                Exception, match=f"an image of {height}x{width} pixels; allowed are sides of 64 or"
            ):
                run(image)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_itself_refuses_other_sizes(kind, tmp_path):
    import onnxruntime

    model = tiny(kind)
    exported = export_model(model, "onnx", tmp_path, (96, 64))
    assert exported.description["image_sizes"] == {"min": [64, 64], "max": [2048, 2048], "multiple_of": 32}
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for image in images(*GOOD):
        assert_equal(model, image, [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})])
    for image in [*images(*BAD), torch.zeros(1, 3, 64, 2080)]:
        with pytest.raises(Exception, match="requested shape"):
            session.run(None, {"image": image.numpy()})
    assert_refuses(get_format("onnx").load(exported.path, exported.description), exported.description)


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_executorch_file_is_the_model_at_the_sizes_that_its_loader_takes(kind, tmp_path):
    model = tiny(kind)
    exported = export_model(model, "executorch", tmp_path, (96, 64))
    run = get_format("executorch").load(exported.path, exported.description)
    for image in images(*GOOD):
        assert_equal(model, image, run(image))
    assert_refuses(run, exported.description)


def assert_refuses(run, described):
    most = described["image_sizes"]["max"][1]
    for image in [*images(*BAD), torch.zeros(1, 3, 64, most + 32)]:
        with pytest.raises(
            ValueError, match=r"pixels; the file takes images of 64x64 to \d+x\d+ whose sides are"
        ):
            run(image)


def test_the_loader_refuses_with_what_is_allowed(tmp_path):
    exported = export_model(tiny(LiteMaskFormer), "torchscript", tmp_path, (96, 64))
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["image_sizes"] == {"min": [64, 64], "max": None, "multiple_of": 32}
    assert described["preprocessing"]["pad"]["at_least"] == 64
    run = get_format("torchscript").load(exported.path, described)
    assert run(torch.zeros(1, 3, 64, 4096))[1].shape[-2:] == (8, 512)
    for size in BAD:
        with pytest.raises(
            ValueError, match="takes images of 64x64 to any size whose sides are multiples of 32"
        ):
            run(torch.zeros(1, 3, *size))
    for image in (
        torch.zeros(3, 64, 64),
        torch.zeros(2, 3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="the file takes 1 x 3 x H x W torch.float32"):
            run(image)


def test_a_fixed_size_is_the_only_one():
    run = guarded(lambda image: image, {"image_sizes": {"min": [75, 101], "max": [75, 101]}})
    assert run(torch.zeros(1, 3, 75, 101)).shape[-1] == 101
    with pytest.raises(ValueError, match="an image of 96x96 pixels; the file takes images of 75x101 alone"):
        run(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize(
    "sizes", [ImageSizes((64, 64), None), ImageSizes((64, 64), (96, 96)), ImageSizes((75, 9), (75, 9))]
)
def test_sizes_survive_json(sizes):
    assert ImageSizes.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "image_sizes is None"),
        ([64, 64], "image_sizes is"),
        ({}, "image_sizes.min is None"),
        ({"min": [64], "max": [64, 64]}, "image_sizes.min is"),
        ({"min": [64, "64"], "max": [64, 64]}, "image_sizes.min is"),
        ({"min": [0, 64], "max": [64, 64]}, "image_sizes.min is"),
        ({"min": [64, 64], "max": 64}, "image_sizes.max is 64"),
        ({"min": [64, 64], "max": [32, 64]}, "image_sizes.max is"),
        ({"min": [64, 64], "max": [96, 96], "multiple_of": 0}, "image_sizes.multiple_of is 0"),
        ({"min": [64, 64], "max": [96, 96], "multiple_of": "8"}, "image_sizes.multiple_of is '8'"),
    ],
)
def test_damaged_sizes_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        guarded(lambda image: image, {"image_sizes": content})


def test_sizes_are_dynamic_in_steps_of_32():
    sizes = ImageSizes.of((96, 128), 64)
    assert sizes == ImageSizes((64, 64), (256, 256)) and sizes.dynamic
    assert sizes.to_json() == {"min": [64, 64], "max": [256, 256], "multiple_of": 32}


def test_another_size_is_the_only_one():
    sizes = ImageSizes.of((72, 96), 64)
    assert not sizes.dynamic and sizes.dims() is None
    assert sizes.to_json() == {"min": [72, 96], "max": [72, 96]}


def test_a_size_can_be_fixed():
    sizes = ImageSizes.of((96, 128), 64, fixed=True)
    assert not sizes.dynamic and sizes.to_json() == {"min": [96, 128], "max": [96, 128]}


def test_images_that_a_file_does_not_take_are_resized():
    sizes = ImageSizes.of((96, 96), 64)
    for height, width in ((96, 96), (64, 192)):
        image = torch.rand(1, 3, height, width)
        assert sizes.fitted(image, (96, 96)) is image
    for height, width in ((96, 224), (32, 96), (96, 100)):
        assert sizes.fitted(torch.rand(1, 3, height, width), (96, 96)).shape == (1, 3, 96, 96)
    alone = ImageSizes.of((72, 96), 64)
    assert alone.fitted(torch.rand(1, 3, 96, 96), (72, 96)).shape == (1, 3, 72, 96)
