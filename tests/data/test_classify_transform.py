import pytest
import torch

from d2go_fbnetv5.data import ClassifyTransform, TrainTransform


def sample(height=60, width=80):
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "class_label": 2,
        "boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]]),
        "box_labels": torch.tensor([1]),
        "sem_seg": torch.zeros(height, width, dtype=torch.int64),
        "image_id": 7,
        "height": height,
        "width": width,
    }


def test_what_only_fits_the_whole_image_is_left_out():
    given = sample()
    before = given["image"].clone()
    made = ClassifyTransform(32, rand_augment=9, erase=1.0)(given, 3)
    assert made["image"].shape == (3, 32, 32) and made["image"].dtype == torch.uint8
    assert set(made) == {"image", "class_label", "image_id", "height", "width"}
    assert torch.equal(given["image"], before) and "boxes" in given


def test_same_seed_same_image_and_torchs_generator_stays():
    transform = ClassifyTransform((24, 40), rand_augment=9, erase=0.5)
    state = torch.get_rng_state()
    first = transform(sample(), 5)["image"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, transform(sample(), 5)["image"])
    assert not torch.equal(first, transform(sample(), 6)["image"])
    assert first.shape == (3, 24, 40)


def test_the_whole_area_of_a_square_is_the_image_itself():
    transform = ClassifyTransform(40, area=(1.0, 1.0), flip=0.0, color=0.0)
    given = sample(40, 40)
    same = [torch.equal(transform(given, seed)["image"], given["image"]) for seed in range(40)]
    assert any(same)  # where the drawn shape is another, torchvision falls back to less than all of it


def test_a_crop_of_one_class_is_drawn_again():
    given = sample(40, 400)
    given["sem_seg"][:, 360:] = 1  # one crop in ten has both
    shares = {}
    for limit in (1.0, 0.75):
        transform = TrainTransform(40, 40, flip=0.0, color=0.0, max_category=limit)
        made = [transform(given, seed)["sem_seg"] for seed in range(60)]
        largest = [labels.unique(return_counts=True)[1].max().item() / labels.numel() for labels in made]
        shares[limit] = sum(share <= 0.75 for share in largest) / len(largest)
    assert shares[0.75] > shares[1.0] + 0.2


def test_ssds_jitter_changes_colours_alone():
    given = sample()
    made = [TrainTransform(60, None, flip=0.0, color=0.0, color_ssd=True)(given, seed) for seed in range(8)]
    assert any(not torch.equal(m["image"], given["image"]) for m in made)
    assert all(torch.equal(m["boxes"], given["boxes"]) for m in made)
    assert all(torch.equal(m["sem_seg"], given["sem_seg"]) for m in made)


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_odd_images(size):
    assert ClassifyTransform(16, rand_augment=9, erase=1.0)(sample(*size), 0)["image"].shape == (3, 16, 16)
