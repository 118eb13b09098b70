import pytest
import torch

from d2go_fbnetv5.data import DigitScenes, EvalTransform, TrainTransform


def rectangle_sample(height=90, width=120, box=(30, 20, 70, 50)):
    """A white rectangle on black, labelled by its box and by 1 in the label map."""
    x0, y0, x1, y1 = box
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    return {
        "image": image,
        "class_label": 4,
        "boxes": torch.tensor([box], dtype=torch.float32),
        "box_labels": torch.tensor([2]),
        "box_is_crowd": torch.tensor([True]),
        "sem_seg": (image[0] > 0).long(),
        "image_id": 11,
        "height": height,
        "width": width,
    }


def pixels_box(mask):
    y, x = mask.nonzero(as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


@pytest.mark.parametrize("seed", range(30))
def test_boxes_and_map_follow_the_pixels(seed):
    transform = TrainTransform(short_side=(60, 90, 150), crop=(80, 100), flip=0.5, color=0.0, min_visible=0.0)
    sample = transform(rectangle_sample(), seed)
    assert sample["image"].shape == (3, 80, 100) and sample["sem_seg"].shape == (80, 100)
    bright = sample["image"][1] > 180
    if len(sample["boxes"]):
        assert (sample["boxes"][0] - pixels_box(bright)).abs().max() <= 1.0
        assert (sample["boxes"][0] - pixels_box(sample["sem_seg"] == 1)).abs().max() <= 1.0
    else:
        assert not bright.any()
    edge = (bright != (sample["sem_seg"] == 1)).float().mean()
    assert edge < 0.03


def test_flip_mirrors_everything():
    sample = rectangle_sample()
    flipped = TrainTransform(short_side=90, crop=None, flip=1.0, color=0)(sample, 0)
    assert torch.equal(flipped["image"], sample["image"].flip(-1))
    assert torch.equal(flipped["sem_seg"], sample["sem_seg"].flip(-1))
    assert flipped["boxes"].tolist() == [[50, 20, 90, 50]]


def test_without_flip_nothing_is_mirrored():
    transform = TrainTransform(short_side=90, crop=None, flip=0.0, color=0)
    sample = rectangle_sample()
    assert all(torch.equal(transform(sample, seed)["image"], sample["image"]) for seed in range(20))


def test_small_image_is_padded_with_grey_and_dont_care():
    sample = rectangle_sample(30, 40, (10, 10, 30, 20))
    for seed in range(5):
        padded = TrainTransform(short_side=30, crop=64, flip=0, color=0)(sample, seed)
        ignored = padded["sem_seg"] == 255
        assert ignored.sum() == 64 * 64 - 30 * 40
        assert (padded["image"].permute(1, 2, 0)[ignored] == torch.tensor([124, 116, 104])).all()
        assert torch.equal(padded["boxes"][0], pixels_box(padded["sem_seg"] == 1))


def test_boxes_are_clipped_and_slivers_dropped():
    # The centre crop keeps x in [20, 80): boxes keep 100%, 50%, 20% and 0% of their area.
    sample = rectangle_sample(60, 100)
    sample["boxes"] = torch.tensor(
        [[30, 10, 50, 30], [70, 10, 90, 30], [76, 10, 96, 30], [85, 10, 95, 30]], dtype=torch.float32
    )
    sample["box_labels"] = torch.arange(4)
    sample["box_is_crowd"] = torch.tensor([False, True, False, True])
    sample["box_areas"] = torch.arange(4, dtype=torch.float64)
    cropped = EvalTransform(60, 60)(sample)
    assert cropped["boxes"].tolist() == [[10, 10, 30, 30], [50, 10, 60, 30]]
    assert cropped["box_labels"].tolist() == [0, 1] and cropped["box_is_crowd"].tolist() == [False, True]
    assert cropped["box_areas"].tolist() == [0, 1]
    assert len(EvalTransform(60, 60, min_visible=0.6)(sample)["boxes"]) == 1


def test_evaluation_resizes_the_image_alone_and_keeps_the_labels_in_the_originals_pixels():
    resized = EvalTransform(45)(rectangle_sample())
    assert resized["image"].shape == (3, 45, 60) and (resized["height"], resized["width"]) == (90, 120)
    given = rectangle_sample()
    assert all(torch.equal(resized[key], given[key]) for key in ("boxes", "box_labels", "sem_seg"))
    assert torch.equal(EvalTransform(None)(rectangle_sample())["image"], rectangle_sample()["image"])


def test_max_size_bounds_the_long_side():
    sample = rectangle_sample(50, 200, (0, 0, 10, 10))
    assert EvalTransform(50, max_size=100)(sample)["image"].shape == (3, 25, 100)
    assert TrainTransform(50, crop=None, max_size=100)(sample, 0)["image"].shape == (3, 25, 100)


def test_pure_function_of_sample_and_seed():
    sample, transform = DigitScenes()[3], TrainTransform(144, 112)
    before = {key: value.clone() for key, value in sample.items() if isinstance(value, torch.Tensor)}
    first = transform(sample, 5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = transform(sample, 5), transform(sample, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert all(torch.equal(sample[key], value) for key, value in before.items())


def test_colour_changes_the_image_only():
    sample = DigitScenes()[3]
    plain = TrainTransform(128, None, flip=0, color=0)(sample, 1)
    coloured = TrainTransform(128, None, flip=0, color=0.5)(sample, 1)
    assert torch.equal(plain["image"], sample["image"]) and not torch.equal(
        coloured["image"], sample["image"]
    )
    assert coloured["image"].dtype == torch.uint8
    assert all(torch.equal(coloured[key], sample[key]) for key in ("boxes", "sem_seg", "box_labels"))


@pytest.mark.parametrize("missing", ["class_label", "boxes", "sem_seg"])
def test_missing_labels_stay_missing(missing):
    sample = rectangle_sample()
    for key in ("boxes", "box_labels", "box_is_crowd") if missing == "boxes" else (missing,):
        del sample[key]
    for transform in (TrainTransform(64, 48), EvalTransform(64, 48)):
        assert transform(sample, 0).keys() == sample.keys()


def test_outputs_are_plain_tensors():
    for value in TrainTransform(64, 48)(rectangle_sample(), 0).values():
        assert type(value) in (torch.Tensor, int)


def test_tiny_images_and_no_boxes():
    sample = rectangle_sample(1, 1, (0, 0, 1, 1))
    assert TrainTransform(32, 24)(sample, 0)["boxes"].tolist() == [[0, 0, 24, 24]]
    sample["boxes"], sample["box_labels"] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    sample["box_is_crowd"] = torch.zeros(0, dtype=torch.bool)
    for transform in (TrainTransform(32, 24), EvalTransform(32, 24)):
        result = transform(sample, 0)
        assert result["boxes"].shape == (0, 4) and result["box_labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainTransform(0), r"short_side is \[0\]"),
        (lambda: TrainTransform([]), r"short_side is \[\]"),
        (lambda: TrainTransform(64, crop=0), "crop is 0"),
        (lambda: TrainTransform(64, flip=1.5), "flip is 1.5, it must be 0 to 1"),
        (lambda: TrainTransform(64, color=-1), "color is -1"),
        (lambda: TrainTransform(64, max_size=64), "max_size is 64, it must be greater than short_side, 64"),
        (lambda: EvalTransform(64, 96), "crop is 96, it must be at most short_side, 64"),
        (lambda: EvalTransform(64, 32, max_size=100), "exclude each other"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
