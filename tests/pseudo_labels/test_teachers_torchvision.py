"""torchvision's models as teachers, with random weights: what their outputs become, and wrong input."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from d2go_fbnetv5.pseudo_labels import build_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import ClassList, bounded, name_list

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
SEGMENTER = "lraspp_mobilenet_v3_large"


class Fixed(nn.Module):
    """Gives the same output for every image."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return [self.output for _ in images]


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def detector(arguments=None, **options):
    arguments = {"min_size": 96, "max_size": 128, **(arguments or {})}
    return build_teacher("torchvision", model=DETECTOR, weights=None, arguments=arguments, **options)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_gaps_of_a_class_list_are_left_out():
    classes = ClassList([None, "cat", "N/A", "dog"])
    assert classes.names == ("cat", "dog")
    boxes, scores = torch.arange(16.0).view(4, 4), torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = classes.boxes(boxes, scores, torch.tensor([3, 0, 2, 1]))
    assert found["labels"].tolist() == [1, 0]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6])
    assert found["boxes"].tolist() == boxes[[0, 3]].tolist()
    assert classes.scores(torch.tensor([0.1, 0.2, 0.3, 0.4])).tolist() == pytest.approx([0.2, 0.4])
    assert classes.boxes(boxes[:0], scores[:0], torch.empty(0))["labels"].dtype == torch.int64
    with pytest.raises(ValueError, match="labels 4 to 4.* 0 to 3"):
        classes.boxes(boxes[:1], scores[:1], torch.tensor([4]))
    with pytest.raises(ValueError, match="scores of 3 classes.* has 4"):
        classes.scores(torch.rand(3, 2, 2))


def test_names_may_be_numbers_in_yaml():
    assert name_list("names", [7, "cat", 1.5]) == ("7", "cat", "1.5")
    for wrong in ("cat", [True], [["cat"]], {"cat": 1}):
        with pytest.raises(ValueError, match="names is .* must be a list of names"):
            name_list("names", wrong)


def test_sums_above_one_are_scaled_and_nothing_else_changes():
    scores = torch.tensor([[[1.6, 0.4, float("nan")]], [[0.8, 0.3, 0.5]]])
    found = bounded(scores)
    assert found[:, 0, :2].tolist() == [pytest.approx([1.0, 0.4]), pytest.approx([0.5, 0.3])]
    assert found[:, 0, 2].isnan().all()


def test_coco_labels_are_without_background_and_gaps():
    teacher = detector()
    assert len(teacher.box_names) == 80
    assert (teacher.box_names[0], teacher.box_names[11], teacher.box_names[79]) == (
        "person",
        "stop sign",
        "toothbrush",
    )
    # Of COCO's 1 to 90, 12 is a gap; 0 is the background.
    labels = torch.tensor([90, 12, 1, 0, 13])
    output = {"boxes": torch.arange(20.0).view(5, 4), "scores": torch.rand(5), "labels": labels}
    teacher.model = Fixed(output)
    (found,) = teacher(images((20, 30)))
    assert found["labels"].tolist() == [79, 0, 11]
    assert torch.equal(found["boxes"], output["boxes"][[0, 2, 4]])


def test_a_detector_labels_images_of_any_size_alike_alone_and_together():
    torch.manual_seed(0)
    teacher = detector(names=["cat", "dog"], arguments={"box_score_thresh": 0.0, "box_detections_per_img": 5})
    assert (teacher.box_names, teacher.sem_seg_names, teacher.class_names) == (("cat", "dog"), (), ())
    batch = images((60, 90), (80, 40), (60, 90))
    found = teacher(batch)
    for image, output in zip(batch, found, strict=True):
        height, width = image.shape[-2:]
        boxes = output["boxes"]
        assert len(boxes) == len(output["scores"]) == len(output["labels"]) == 5
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        assert set(output["labels"].tolist()) <= {0, 1}
        (alone,) = teacher([image])
        assert torch.allclose(alone["boxes"], boxes, atol=1e-3)
        assert torch.allclose(alone["scores"], output["scores"], atol=1e-5)
    nothing = detector(names=["cat"], arguments={"box_score_thresh": 1.0})
    assert [output["boxes"].shape for output in nothing(batch)] == [(0, 4)] * 3


def test_a_segmenter_gives_probabilities_of_the_whole_image():
    torch.manual_seed(0)
    teacher = build_teacher("torchvision", model=SEGMENTER, weights=None, names=["sky", "sea", "N/A", "sand"])
    assert teacher.sem_seg_names == ("sky", "sea", "sand")
    (image,) = images((50, 60))
    (wide, high) = teacher([image, *images((60, 50))])
    assert wide["probabilities"].shape == (3, 520, 624) and high["probabilities"].shape == (3, 624, 520)
    resized = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.transforms()(image)
    expected = teacher.model(resized[None])["out"].softmax(1)[0, [0, 1, 3]]
    assert torch.allclose(wide["probabilities"], expected)
    next(teacher.model.parameters()).fill_(float("nan"))
    assert teacher([image])[0]["probabilities"].isnan().any()


def test_a_classifier_gives_the_scores_of_its_classes():
    teacher = build_teacher("torchvision", model="mobilenet_v3_small", weights=None)
    assert len(teacher.class_names) == 1000 and teacher.class_names[0] == "tench"
    found = teacher(images((50, 100), (40, 40)))
    assert [output["class_scores"].shape for output in found] == [(1000,)] * 2
    assert found[0]["class_scores"].sum() == pytest.approx(1, abs=1e-5)


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "cats.pth"
    torch.manual_seed(0)
    model = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=2)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    teacher = build_teacher(
        "torchvision", model="mobilenet_v3_small", weights=str(path), names=["cat", "dog"]
    )
    (image,) = images((30, 30))
    resized = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()(image)
    expected = model.eval()(resized[None]).softmax(1)[0]
    assert torch.allclose(teacher([image])[0]["class_scores"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="cats.pth does not fit, with 3 classes"):
        build_teacher("torchvision", model="mobilenet_v3_small", weights=str(path), names=["a", "b", "c"])
    model.classifier[3].bias.data[0] = float("inf")
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match=r"'classifier.3.bias' is not finite"):
        build_teacher("torchvision", model="mobilenet_v3_small", weights=str(path), names=["cat", "dog"])


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(
        OSError, match="'resnet18': weights ResNet18_Weights.IMAGENET1K_V1 cannot be had.* no network"
    ):
        build_teacher("torchvision", model="resnet18")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet5"}, "has no model 'resnet5'"),
        ({"model": "r3d_18"}, "is for video, allowed are those for detection, segmentation, classification"),
        (
            {"model": "resnet18", "weights": "COCO_V1"},
            "neither a file nor torchvision's .IMAGENET1K_V1, DEFAULT",
        ),
        ({"model": DETECTOR, "names": ["cat"]}, "1 names are given, the model has 90 classes"),
        ({"model": DETECTOR, "weights": None, "names": "cat"}, "names' of .* is 'cat', allowed: a list"),
        ({"model": "resnet18", "weights": None, "arguments": {"depth": 3}}, "depth"),
        ({"model": "resnet18", "size": 3}, "has no option 'size'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build_teacher("torchvision", **options)
