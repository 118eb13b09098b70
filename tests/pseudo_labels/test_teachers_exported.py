"""TorchScript and ONNX files as teachers: files that are written here and whose outputs are computed by hand."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from d2go_fbnetv5.export import Format, register_format
from d2go_fbnetv5.export.formats.base import OpenedFile
from d2go_fbnetv5.pseudo_labels import build_teacher, list_teachers
from d2go_fbnetv5.utils.errors import InputError

IMAGE = torch.tensor([[[10, 20, 30, 40], [50, 60, 70, 80]]] * 3, dtype=torch.uint8)
IMAGE = IMAGE * torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)  # red, green, blue differ


class Detector(nn.Module):
    """Two boxes that depend on the input's size, and one that fills up the list."""

    def forward(self, image: torch.Tensor):
        height, width = float(image.shape[-2]), float(image.shape[-1])
        whole = torch.tensor([0.0, 0.0, width, height])
        half = torch.tensor([0.0, 0.0, width / 2, height / 2])
        return (
            torch.stack([whole, half, torch.zeros(4)]),
            torch.tensor([0.9, 0.5, 0.0]),
            torch.tensor([1, 0, -1]),
        )


class Shares(nn.Module):
    def forward(self, image: torch.Tensor):
        return {
            "boxes": torch.tensor([[[0.25, 0.0, 0.5, 1.0]]]),
            "scores": torch.tensor([[0.8]]),
            "labels": torch.tensor([[1.0]]),
        }


class Channels(nn.Module):
    """The input itself as scores of three classes, and its mean."""

    def forward(self, image: torch.Tensor):
        return {"probabilities": image, "class_scores": image.mean((-2, -1))}


class NoBoxes(nn.Module):
    def forward(self, image: torch.Tensor):
        return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def script(tmp_path):
    def save(module):
        path = tmp_path / f"{type(module).__name__}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(module).save(path)
        return str(path)

    return save


def torchscript(path, **options):
    return build_teacher("torchscript", path=path, **options)


DETECTIONS = {"box_names": ["cat", "dog"], "outputs": ["boxes", "scores", "labels"]}


@pytest.mark.parametrize(
    "size", [{}, {"size": [10, 30]}, {"short_side": 50, "max_size": 60}, {"multiple_of": 32}]
)
def test_boxes_are_in_pixels_of_the_image_whatever_the_input(script, size):
    teacher = torchscript(script(Detector()), **DETECTIONS, **size)
    images = [torch.zeros(3, 20, 40, dtype=torch.uint8), torch.zeros(3, 90, 30, dtype=torch.uint8)]
    first, second = teacher(images)
    assert torch.allclose(first["boxes"], torch.tensor([[0.0, 0, 40, 20], [0, 0, 20, 10]]))
    assert torch.allclose(second["boxes"], torch.tensor([[0.0, 0, 30, 90], [0, 0, 15, 45]]))
    assert first["labels"].tolist() == [1, 0] and first["scores"].tolist() == pytest.approx([0.9, 0.5])


def test_boxes_as_shares_and_labels_that_start_at_one(script):
    teacher = torchscript(script(Shares()), box_names=["cat"], first_label=1, boxes_in="shares")
    (found,) = teacher([torch.zeros(3, 20, 40, dtype=torch.uint8)])
    assert found["boxes"].tolist() == [[10.0, 0.0, 20.0, 20.0]]
    assert found["labels"].tolist() == [0] and found["scores"].tolist() == pytest.approx([0.8])
    with pytest.raises(ValueError, match="grey image: the model gave labels 1 to 1, .* has 0 to 0"):
        torchscript(script(Shares()), box_names=["cat"])


def test_no_boxes(script):
    (found,) = torchscript(script(NoBoxes()), **DETECTIONS)([IMAGE])
    assert found["boxes"].shape == (0, 4) and found["labels"].shape == found["scores"].shape == (0,)


@pytest.mark.parametrize("batched", [True, False])
def test_pixels_are_normalised_in_the_files_order(script, batched):
    options = {"sem_seg_names": ["a", "b", "c"], "class_names": ["x", "N/A", "z"], "batched": batched}
    teacher = torchscript(script(Channels()), **options, mean=[10, 20, 30], std=[1, 2, 4], bgr=True)
    (found,) = teacher([IMAGE])
    blue, green, red = IMAGE.float().flip(0)
    expected = torch.stack([blue - 10, (green - 20) / 2, (red - 30) / 4])
    assert torch.allclose(found["probabilities"], expected)
    assert torch.allclose(found["class_scores"], expected.mean((1, 2))[[0, 2]])
    assert teacher.sem_seg_names == ("a", "b", "c") and teacher.class_names == ("x", "z")


@pytest.mark.parametrize(
    ("activation", "compute"),
    [
        ("softmax", lambda x: x.softmax(0)),
        ("sigmoid", torch.sigmoid),
        ("sums", lambda x: x / x.max(0).values.clamp(min=1)),
    ],
)
def test_activations(script, activation, compute):
    options = {"sem_seg_names": ["a", "b", "c"], "activation": activation, "std": [100, 100, 100]}
    (found,) = torchscript(script(Channels()), **options)([IMAGE])
    assert torch.allclose(found["probabilities"], compute(IMAGE.float() / 100), atol=1e-6)


def test_our_own_exported_models_are_such_files(script):
    from d2go_fbnetv5.export.network.inference import ClassifierInference
    from d2go_fbnetv5.zoo import create_model

    torch.manual_seed(0)
    model = create_model("FBNetV5-N-CLS", num_classes=3).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ClassifierInference(model), torch.zeros(1, 3, 64, 96), check_trace=False)
    path = script(Channels()).replace("Channels", "classifier")
    traced.save(path)
    names = ["ant", "bee", "cat"]
    teacher = torchscript(path, class_names=names, outputs=["class_scores"], size=[64, 96])
    expected = model([{"image": image}])[0]["class_scores"]
    assert torch.allclose(teacher([image])[0]["class_scores"], expected, atol=1e-4)


def onnx_file(path, side):
    """A file that gives a tenth of the image as ``probabilities``, and its channels' means as ``class_scores``."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Div", ["image", "ten"], ["probabilities"]),
        helper.make_node("ReduceMean", ["image", "axes"], ["class_scores"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", kind, [1, 3, *side])],
        [
            helper.make_tensor_value_info("probabilities", kind, [1, 3, *side]),
            helper.make_tensor_value_info("class_scores", kind, [1, 3]),
        ],
        [
            onnx.numpy_helper.from_array(np.array(10, dtype=np.float32), "ten"),
            onnx.numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return str(path)


def test_onnx_names_its_outputs(tmp_path):
    path = onnx_file(tmp_path / "any.onnx", ["height", "width"])
    teacher = build_teacher("onnx", path=path, sem_seg_names=["a", "b", "c"], class_names=["x", "y", "z"])
    (found, other) = teacher([IMAGE, torch.full((3, 5, 7), 50, dtype=torch.uint8)])
    assert torch.allclose(found["probabilities"], IMAGE / 10)
    assert torch.allclose(found["class_scores"], IMAGE.float().mean((1, 2)))
    assert other["probabilities"].shape == (3, 5, 7) and (other["probabilities"] == 5).all()
    renamed = build_teacher("onnx", path=path, class_names=["x", "y", "z"], outputs=["", "class_scores"])
    assert torch.equal(renamed([IMAGE])[0]["class_scores"], found["class_scores"])


def test_onnx_of_a_fixed_size_gets_images_of_that_size(tmp_path):
    teacher = build_teacher(
        "onnx", path=onnx_file(tmp_path / "fixed.onnx", [6, 8]), sem_seg_names=["a", "b", "c"]
    )
    assert teacher([IMAGE])[0]["probabilities"].shape == (3, 6, 8)


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "none of box_names, sem_seg_names, class_names is given"),
        ({"class_names": "cat"}, "class_names' of .* is 'cat', allowed: a list"),
        ({"class_names": ["a"], "outputs": ["logits"]}, "outputs has 'logits'"),
        ({"class_names": ["a"], "activation": "relu"}, "activation is 'relu', allowed are none, softmax"),
        ({"class_names": ["a"], "boxes_in": "inches"}, "boxes_in is 'inches'"),
        ({"class_names": ["a"], "size": 32}, "size' of .* is 32, allowed: a list"),
        ({"class_names": ["a"], "size": [8, 8], "short_side": 3}, "exclude each other"),
        ({"class_names": ["a"], "max_size": 3}, "max_size is 3, allowed without short_side: nothing"),
        ({"class_names": ["a"], "multiple_of": 0}, "multiple_of is 0"),
        ({"class_names": ["a"], "std": [1, 0, 1]}, "std is .* must be positive"),
        ({"class_names": ["a"], "mean": [1]}, "mean is .* three numbers"),
        ({"class_names": ["a"], "colour": 1}, "has no option 'colour'; its options are"),
        ({"class_names": ["a"]}, "cannot load it"),
    ],
)
def test_wrong_options_are_named(tmp_path, name, options, words):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "broken"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=words):
        build_teacher(name, path=str(path), **options)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_teacher(name, path="nowhere", class_names=["a"])


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (
            Channels(),
            {"sem_seg_names": ["a"]},
            "the model gave scores of 3 classes, its list of classes has 1",
        ),
        (Channels(), {"box_names": ["a"]}, "gives probabilities, class_scores, but no boxes"),
        (
            Detector(),
            {"box_names": ["a", "b"]},
            "gives 3 outputs without names, and the option outputs names 0",
        ),
        (
            Detector(),
            {"box_names": ["a", "b"], "outputs": ["scores", "boxes", "labels"]},
            r"its boxes are of shape \(3,\), not of 2 dimensions",
        ),
    ],
)
def test_a_file_that_does_not_fit_its_options_is_no_teacher(script, module, options, words):
    with pytest.raises(ValueError, match=f"tried with a grey image: {words}"):
        torchscript(script(module), **options)


class Mine(Format):
    foreign = True

    def open(self, path, device):
        with open(path) as file:
            return OpenedFile(eval(file.read(), {"torch": torch}), device)


def test_a_format_of_ones_own_that_opens_files_is_a_teacher(tmp_path, monkeypatch):
    register_format("mine")(Mine)
    register_format("closed")(type("Closed", (Format,), {}))
    assert "mine" in list_teachers() and "closed" not in list_teachers()
    path = tmp_path / "model.mine"
    path.write_text("lambda image: image.mean((-2, -1))")
    teacher = build_teacher(
        "mine", path=str(path), class_names=list("rgb"), outputs=["class_scores"], std=[255] * 3
    )
    (found,) = teacher([IMAGE])
    torch.testing.assert_close(found["class_scores"], IMAGE.float().mean((1, 2)) / 255)
    path.write_text("1 / 0")
    with pytest.raises(
        InputError, match=r"teacher 'mine' cannot be built: ZeroDivisionError: division by zero"
    ):
        build_teacher("mine", path=str(path), class_names=list("rgb"))
