"""A label of a user's own moves with its image, or is refused."""

import math

import pytest
import torch

from d2go_fbnetv5.data import ClassifyTransform, EvalTransform, TrainTransform
from d2go_fbnetv5.data.moves import labels_in_image
from d2go_fbnetv5.tasks import register_label
from d2go_fbnetv5.tasks.labels import LABELS


@pytest.fixture(autouse=True)
def own_labels():
    register_label("relief", "map", interpolation="bilinear", fill=-1)
    register_label("instances", "map", fill=2**40)
    register_label("masks", "map", rows_of="boxes")
    register_label("keypoints", "points", rows_of="boxes", mirrored=[1, 0, 2])
    register_label("captions", "plain", rows_of="boxes")
    register_label("embedding", "plain")


def sample(height=60, width=100):
    """Two objects that fill their boxes; the depth of a pixel is where it lies: x + y."""
    boxes = torch.tensor([[10.0, 8, 40, 32], [60, 20, 96, 58]])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    seen = torch.tensor([[2.0], [1], [2]]).expand(2, 3, 1)
    corners = torch.stack([boxes[:, :2], boxes[:, 2:], (boxes[:, :2] + boxes[:, 2:]) / 2], 1)
    return {
        "image": (masks.any(0) * 255).to(torch.uint8).expand(3, -1, -1).contiguous(),
        "image_id": 5,
        "height": height,
        "width": width,
        "file_name": "a.png",
        "boxes": boxes,
        "box_labels": torch.tensor([3, 4]),
        "box_areas": torch.tensor([7.0, 8.0], dtype=torch.float64),
        "masks": masks,
        "keypoints": torch.cat([corners, seen], 2),
        "captions": ["left", "right"],
        "relief": x + y,
        "instances": (masks[0] * 2**33 + masks[1] * 3).long(),
        "embedding": torch.arange(7.0),
    }


@pytest.mark.parametrize("seed", range(20))
def test_own_labels_follow_the_pixels(seed):
    given = sample()
    transform = TrainTransform((60, 90), crop=(64, 80), color=0.4, min_visible=0.5)
    moved = transform(given, seed)
    assert "box_areas" not in moved and (moved["height"], moved["width"]) == (64, 80)
    assert all(moved[key].shape[-2:] == (64, 80) for key in ("masks", "relief", "instances"))
    count = len(moved["boxes"])
    assert count == len(moved["masks"]) == len(moved["keypoints"]) == len(moved["captions"])
    assert moved["captions"] == [{3: "left", 4: "right"}[label] for label in moved["box_labels"].tolist()]
    for box, mask, points in zip(moved["boxes"], moved["masks"], moved["keypoints"], strict=True):
        y, x = mask.nonzero(as_tuple=True)
        pixels = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (box - pixels).abs().max() <= 1
        # The two corners, of which the left one stays the first, cut off as the box is.
        corners = points[:2, :2].maximum(torch.zeros(2)).minimum(torch.tensor([80.0, 64]))
        assert torch.allclose(corners[:, 0], box[[0, 2]], atol=1e-3)
        assert points[2, 2] == 2 and points[:2, 2].sum() == 3
    assert set(moved["instances"].unique().tolist()) <= {0, 3, 2**33, 2**40}
    beyond = moved["instances"] == 2**40
    assert (moved["relief"][beyond] == -1).all() and (moved["relief"][~beyond] > 0).all()
    assert torch.equal(moved["embedding"], given["embedding"]) and moved["file_name"] == "a.png"


def test_a_flip_mirrors_maps_and_points_and_exchanges_left_and_right():
    given, transform = sample(), TrainTransform(60, None, flip=1.0, color=0)
    moved = transform(given, 0)
    assert torch.equal(moved["relief"], given["relief"].flip(-1))
    assert torch.equal(moved["masks"], given["masks"].flip(-1))
    assert moved["keypoints"][0].tolist() == [[60, 32, 1], [90, 8, 2], [75, 20, 2]]


def test_a_bilinear_map_is_interpolated_and_a_crop_of_it_is_its_part():
    resized = TrainTransform(30, None, flip=0, color=0)(sample(), 0)
    x, y = torch.meshgrid(torch.arange(50) + 0.5, torch.arange(30) + 0.5, indexing="xy")
    assert torch.allclose(resized["relief"][1:-1, 1:-1], 2 * (x + y)[1:-1, 1:-1], atol=1e-3)
    assert torch.equal(resized["keypoints"][..., :2], sample()["keypoints"][..., :2] / 2)


def test_evaluation_leaves_labels_in_the_originals_pixels_and_crops_them_there():
    given = sample()
    resized = EvalTransform(30)(given)
    assert resized["image"].shape == (3, 30, 50)
    assert resized.keys() == given.keys() and resized["captions"] == given["captions"]
    for key, value in given.items():
        if isinstance(value, torch.Tensor) and key != "image":
            assert torch.equal(resized[key], value)
    # The centre of 30 x 50, 20 x 20, is rows 10 to 50 and columns 30 to 70 of the original.
    cropped = EvalTransform(30, 20, min_visible=0.1)(given)
    assert cropped["image"].shape == (3, 20, 20) and (cropped["height"], cropped["width"]) == (40, 40)
    assert torch.equal(cropped["relief"], given["relief"][10:50, 30:70])
    assert torch.equal(cropped["masks"], given["masks"][:, 10:50, 30:70])
    assert cropped["boxes"].tolist() == [[0, 0, 10, 22], [30, 10, 40, 40]]
    assert cropped["box_areas"].tolist() == [7, 8]
    assert cropped["keypoints"][0, 0].tolist() == [-20, -2, 2]
    assert EvalTransform(30, 20, min_visible=0.3)(given)["captions"] == ["left"]


def test_a_classifiers_crop_leaves_out_what_has_a_place():
    made = ClassifyTransform(32)(sample(), 0)
    assert set(made) == {"image", "image_id", "height", "width", "file_name", "embedding"}


UNKNOWN = {
    "a map of the image's size": torch.zeros(60, 100),
    "points": torch.zeros(4, 2),
    "a row for each box": torch.zeros(2),
    "a list": [[1.0, 2.0]],
    "a dict": {"x": torch.zeros(3)},
}


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("transform", [TrainTransform(64, 48), EvalTransform(64), ClassifyTransform(32)])
def test_a_label_that_nobody_registered_is_an_error_that_says_how(what, transform):
    with pytest.raises(
        ValueError, match=r"'gaze' of image 5 .*register_label\(\"gaze\", kind\).*map, points"
    ):
        transform({**sample(), "gaze": UNKNOWN[what]}, 0)


def test_numbers_and_texts_need_no_registration():
    made = TrainTransform(64, 48)({**sample(), "weight": 0.5, "count": torch.tensor(3), "why": None}, 0)
    assert (made["weight"], int(made["count"]), made["why"]) == (0.5, 3, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("relief", torch.zeros(60, 99), r"'relief' of image 5 is \(60, 99\), its image \(60, 100\)"),
        ("sem_seg", torch.zeros(59, 100), r"'sem_seg' of image 5 is \(59, 100\)"),
        ("box_labels", torch.zeros(3), "'box_labels' of image 5 has 3 entries, its 'boxes' 2"),
        ("captions", ["one"], "'captions' of image 5 has 1 entries, its 'boxes' 2"),
    ],
)
def test_a_label_that_does_not_fit_its_image_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(64, 48)({**sample(), key: value}, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mask"}, "kind is 'mask', allowed are plain, map, points, boxes, evaluation"),
        ({"kind": "map", "interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"kind": "points", "mirrored": [0, 2]}, r"mirrored is \(0, 2\)"),
    ],
)
def test_a_wrong_registration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        register_label("new", **arguments)
    with pytest.raises(ValueError, match="'sem_seg' is registered already"):
        register_label("sem_seg", "map", fill=0)
    assert "new" not in LABELS


def test_an_evaluations_labels_in_its_image_for_a_loss():
    plain = {"image": torch.zeros(3, 40, 20, dtype=torch.uint8), "image_id": 1, "class_label": 3}
    labels = {
        "boxes": torch.tensor([[2.0, 4.0, 10.0, 20.0]]),
        "box_labels": torch.tensor([1]),
        "sem_seg": torch.arange(2).repeat_interleave(20)[:, None].expand(40, 20).contiguous(),
    }
    shown = EvalTransform(40)({**plain, **labels, "height": 40, "width": 20})
    assert shown["image"].shape[-2:] == (80, 40) and torch.equal(shown["boxes"], labels["boxes"])
    moved = labels_in_image(shown)
    assert moved["boxes"].tolist() == [[4.0, 8.0, 20.0, 40.0]]
    assert moved["sem_seg"].sum(0).tolist() == [40] * 40 and (moved["height"], moved["width"]) == (80, 40)
    assert labels_in_image(moved) is moved and moved["class_label"] == 3


def test_fills_may_be_nan():
    register_label("normal", "map", fill=math.nan)
    moved = TrainTransform(60, (64, 100), flip=0, color=0)({**sample(), "normal": torch.zeros(3, 60, 100)}, 1)
    assert moved["normal"].isnan().any(-1).all(0).sum() == 4
