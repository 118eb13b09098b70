"""The images that int8 is calibrated and files are checked with."""

import pytest
import torch
from exported import tiny
from PIL import Image

from d2go_fbnetv5.export.images import calibration_images, padded_image
from d2go_fbnetv5.models import ImageClassifier, LiteRCNN


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


class _Predictor:
    """As a predictor whose model takes images as they are."""

    model = tiny(ImageClassifier)

    def sample(self, image):
        return {"image": image}


def test_padding_has_the_mean_colour():
    model = tiny(LiteRCNN)
    (image,) = images((70, 96))
    padded = padded_image(model, image)
    assert padded.shape == (1, 3, 96, 96) and torch.equal(padded[0, :, :70], image)
    assert torch.equal(padded[0, :, 70:], model.pixel_mean.view(3, 1, 1).expand(3, 26, 96))


def test_calibration_images_come_from_all_over_a_set():
    few = list(calibration_images(["digit_scenes_val"], _Predictor(), 4))
    assert [x.shape for x in few] == [(1, 3, 128, 128)] * 4
    more = list(calibration_images(["digit_scenes_val"], _Predictor(), 8))
    assert all(torch.equal(a, b) for a, b in zip(few, more[::2], strict=True))
    assert len({float(x.sum()) for x in more}) == 8


def test_calibration_images_of_several_sets_are_from_each():
    a, b, c, d = calibration_images(["digit_scenes_val", "digit_scenes_val"], _Predictor(), 4)
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b)


def test_calibration_images_of_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    pictures = [image.byte() for image in images((64, 64), (96, 64), (64, 64))]
    for name, picture in zip(("b.png", "a.png", "deep/c.png"), pictures, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name)
    found = list(calibration_images([str(tmp_path)], _Predictor(), 10))
    assert [int(x.sum()) for x in found] == [int(pictures[i].sum()) for i in (1, 0, 2)]


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [
        ("nowhere", 4, "neither a folder nor a data set.*digit_scenes_train"),
        ("digit_scenes_val", 0, "0 calibration"),
    ],
)
def test_wrong_calibration_data(source, count, message):
    with pytest.raises(ValueError, match=message):
        next(calibration_images([source], _Predictor(), count))


def test_an_empty_folder_is_no_calibration_data(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        next(calibration_images([str(tmp_path)], _Predictor(), 4))
