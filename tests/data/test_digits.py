import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import DigitScenes, digits
from d2go_fbnetv5.data import scenes as scenes_module
from d2go_fbnetv5.data.digits import digit_indices


def scenes(split="train", count=150, **options):
    dataset = DigitScenes(split, num_images=count, **options)
    return [dataset[index] for index in range(count)]


@pytest.mark.parametrize("size", [128, (96, 160), (200, 64), 32])
def test_shapes_types_and_ranges(size):
    height, width = (size, size) if isinstance(size, int) else size
    for number, sample in enumerate(scenes(count=40, size=size)):
        count = len(sample["boxes"])
        assert sample["image"].shape == (3, height, width) and sample["image"].dtype == torch.uint8
        assert sample["sem_seg"].shape == (height, width) and sample["sem_seg"].dtype == torch.int64
        assert sample["boxes"].dtype == torch.float32 and sample["box_labels"].dtype == torch.int64
        assert sample["box_labels"].shape == (count,) and 1 <= count <= 5
        assert (sample["height"], sample["width"], sample["image_id"]) == (height, width, number)
        low, high = sample["boxes"][:, :2], sample["boxes"][:, 2:]
        assert (low >= 0).all() and (high <= torch.tensor([width, height])).all() and (low < high).all()


def test_label_map_and_boxes_tell_the_same():
    for sample in scenes():
        sem_seg = sample["sem_seg"]
        covered = torch.zeros_like(sem_seg, dtype=torch.bool)
        for (x0, y0, x1, y1), label in zip(sample["boxes"].int().tolist(), sample["box_labels"], strict=True):
            covered[y0:y1, x0:x1] = True
            own = sem_seg[y0:y1, x0:x1] == label + 1
            assert own[0].any() and own[-1].any() and own[:, 0].any() and own[:, -1].any()
        assert (sem_seg[~covered] == 0).all()
        assert set(sem_seg.unique().tolist()) == {0, *(sample["box_labels"] + 1).tolist()}


def test_every_labelled_digit_is_visible():
    dataset = DigitScenes(num_images=150)
    overlaps = 0
    for index in range(150):
        drawn, owner = dataset.arrange(np.random.default_rng(index))
        for number, digit in enumerate(drawn):
            visible = (owner[digit.window] == number) & digit.mask
            assert visible.sum() == (owner == number).sum() >= 0.75 * digit.mask.sum()
            overlaps += int(visible.sum() < digit.mask.sum())
    assert overlaps > 15


def test_class_is_the_largest_digit_by_a_margin():
    labels = set()
    for sample in scenes():
        sizes = sample["boxes"][:, 2:] - sample["boxes"][:, :2]
        areas, order = sizes.prod(1).sort(descending=True)
        assert sample["class_label"] == sample["box_labels"][order[0]]
        if len(order) > 1:
            assert areas[0] >= 1.39 * areas[1]
            assert sizes[order[0], 1] >= 1.39 * sizes[order[1:], 1].max()
        labels.add(sample["class_label"])
    assert labels == set(range(10))


def test_digits_come_in_many_sizes():
    heights = torch.cat([sample["boxes"][:, 3] - sample["boxes"][:, 1] for sample in scenes()])
    assert heights.min() < 14 and heights.max() > 70


def test_ink_is_brighter_than_any_photograph(monkeypatch):
    monkeypatch.setattr(scenes_module, "_photographs", lambda: (np.full((200, 200, 3), 255, np.uint8),))
    luminance = torch.tensor([0.299, 0.587, 0.114])
    for sample in scenes(count=60):
        grey = sample["image"].permute(1, 2, 0).float() @ luminance
        assert grey[sample["sem_seg"] == 0].median() <= 0.5 * 255 + 1
        assert (grey[sample["sem_seg"] > 0] > 128).float().mean() > 0.8  # strokes' edges are blended


def test_same_index_gives_the_same_sample_and_seeds_differ():
    first, again, other = (DigitScenes(seed=seed)[7] for seed in (3, 3, 4))
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(DigitScenes("val", seed=3)[7]["sem_seg"], first["sem_seg"])


def test_rendering_leaves_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.get_rng_state(), np.random.get_state()[1].copy()
    DigitScenes()[0]
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (np.random.get_state()[1] == expected[1]).all()


def test_splits_share_no_digit():
    train, val = digit_indices("train"), digit_indices("val")
    assert sorted([*train, *val]) == list(range(1797)) and len(val) == 359
    glyphs, labels = digits.glyphs()
    assert set(labels[train]) == set(labels[val]) == set(range(10))
    pixels = [glyph.tobytes() + bytes(glyph.shape) for glyph in glyphs]
    assert not {pixels[index] for index in train} & {pixels[index] for index in val}


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_split_draws_its_own_digits_and_halves_only(monkeypatch, seed):
    glyphs, _ = digits.glyphs()
    labels = np.full(len(glyphs), 3)
    labels[digit_indices("val")] = 9
    photograph = np.zeros((200, 300, 3), np.uint8)
    photograph[:, :150, 0] = photograph[:, 150:, 2] = 200
    monkeypatch.setattr(digits, "glyphs", lambda: (glyphs, labels))
    monkeypatch.setattr(scenes_module, "_photographs", lambda: (photograph,))
    for split, label, channel in (("train", 3, 0), ("val", 9, 2)):
        for sample in scenes(split, count=20, seed=seed):
            assert (sample["box_labels"] == label).all()
            outside = torch.ones_like(sample["sem_seg"], dtype=torch.bool)
            for x0, y0, x1, y1 in sample["boxes"].int().tolist():
                outside[y0:y1, x0:x1] = False
            seen = sample["image"][:, outside]
            assert (seen[channel] >= 50).all()
            assert (seen[[c for c in range(3) if c != channel]] == 0).all()


def test_info_names_every_class():
    info = DigitScenes().info
    assert info.class_names == info.box_names == tuple("0123456789")
    assert info.sem_seg_names == ("background", *"0123456789")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split is 'test', allowed are train, val"),
        ({"size": 16}, "size is 16, it must be 32 to"),
        ({"size": 100_000}, "size is 100000x100000, allowed are 16777216 pixels"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 10**9}, "num_images is 1000000000, it must be 1 to 10000000"),
        ({"seed": -1}, "seed is -1"),
        ({"max_digits": 0}, "max_digits is 0"),
        ({"max_digits": 10**6}, "max_digits is 1000000, it must be 1 to 100"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**options)


def test_index_outside_the_set():
    with pytest.raises(IndexError, match="has 3 images"):
        DigitScenes(num_images=3)[3]


def test_depth_is_the_background_s_or_one_step_nearer_with_each_object_that_lies_on_another():
    seen = set()
    for sample in scenes("train", count=40, seed=0):
        depth, sem_seg = sample["depth"], sample["sem_seg"]
        assert depth.dtype == torch.float32 and depth.shape == sem_seg.shape
        assert torch.equal(depth == 1, sem_seg == 0)
        steps = (1 / depth).unique()
        assert steps.tolist() == list(
            range(1, len(steps) + 1)
        )  # what lies k high lies on something k - 1 high
        seen.add(len(steps))
    assert {2, 3} <= seen


def test_a_stack_is_as_high_as_its_longest_chain_of_overlaps():
    def square(left, top):
        return scenes_module.Item(0, top, left, np.ones((4, 4)), np.ones((4, 4), bool))

    corner = scenes_module.Item(
        0, 0, 0, np.eye(4), np.eye(4, dtype=bool)
    )  # its box, not it, meets the last one's
    items = [square(0, 0), square(10, 0), square(2, 2), square(12, 0), square(4, 4)]
    assert scenes_module.stacking(items).tolist() == [1, 1, 2, 2, 3]
    apart = scenes_module.Item(0, 0, 2, np.ones((2, 2)), np.ones((2, 2), bool))
    assert scenes_module.stacking([corner, apart]).tolist() == [1, 1]
