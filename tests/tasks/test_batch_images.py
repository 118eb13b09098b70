import pytest
import torch

from d2go_fbnetv5.tasks import batch_images, padded_size

MEAN, STD = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)


def sample(height, width):
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "image_id": 7}


@pytest.mark.parametrize(
    ("sizes", "divisibility", "expected"),
    [
        ([(32, 64)], 32, (32, 64)),
        ([(33, 64)], 32, (64, 64)),
        ([(20, 70), (60, 10)], 32, (64, 96)),
        ([(5, 7)], 1, (5, 7)),
    ],
)
def test_padded_size(sizes, divisibility, expected):
    assert padded_size([sample(*size) for size in sizes], divisibility) == expected


def test_images_are_normalised_and_padded_right_and_bottom_with_zeros():
    batch = [sample(20, 50), sample(40, 33)]
    images = batch_images(batch, MEAN, STD)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    for padded, each in zip(images, batch, strict=True):
        height, width = each["image"].shape[1:]
        expected = (each["image"].double() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
            3, 1, 1
        )
        torch.testing.assert_close(padded[:, :height, :width].double(), expected)
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()


def test_a_batch_holds_what_its_images_alone_give():
    batch = [sample(32, 64), sample(64, 64), sample(40, 50)]
    together = batch_images(batch, torch.tensor(MEAN), torch.tensor(STD))
    for padded, each in zip(together, batch, strict=True):
        alone = batch_images([each], MEAN, STD)[0]
        assert torch.equal(padded[:, : alone.shape[1], : alone.shape[2]], alone)


def test_images_are_left_as_they_are():
    each = sample(32, 32)
    before = each["image"].clone()
    batch_images([each], MEAN, STD)
    assert torch.equal(each["image"], before)


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match="batch is empty"):
        batch_images([], MEAN, STD)
    with pytest.raises(ValueError, match=r"image 7 has shape \(1, 4, 4\)"):
        batch_images([{"image": torch.zeros(1, 4, 4), "image_id": 7}], MEAN, STD)
