import gzip

import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import FashionScenes, build_dataset
from d2go_fbnetv5.data.fashion import FASHION_NAMES, load_fashion


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of Fashion-MNIST's format: solid shapes, each class of a brightness and a width of its own."""
    folder = tmp_path_factory.mktemp("fashion")
    for part, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 6 : 14 + label] = 100 + 10 * label + (5 if part == "t10k" else 0)
        images[:, 10:14, 8:11] = 0  # a dark spot inside
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return str(folder)


def samples(folder, split="train", count=40, **options):
    dataset = FashionScenes(split, num_images=count, folder=folder, **options)
    return [dataset[index] for index in range(count)]


def test_files_are_read_gzipped_or_not(folder):
    images, labels = load_fashion("train", folder)
    assert images.shape == (40, 28, 28) and labels.tolist() == [i % 10 for i in range(40)]
    assert images[3].max() == 130 and load_fashion("val", folder)[0][3].max() == 135


def test_labels_agree_with_each_other(folder):
    seen = set()
    for sample in samples(folder, size=(96, 128)):
        sem_seg, boxes, labels = sample["sem_seg"], sample["boxes"].int().tolist(), sample["box_labels"]
        assert sample["image"].shape == (3, 96, 128) and sem_seg.shape == (96, 128)
        assert set(sem_seg.unique().tolist()) == {0, *(labels + 1).tolist()}
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            own = sem_seg[y0:y1, x0:x1] == label + 1
            assert own[0].any() and own[-1].any() and own[:, 0].any() and own[:, -1].any()
        areas = (sample["boxes"][:, 2:] - sample["boxes"][:, :2]).prod(1)
        assert sample["class_label"] == labels[areas.argmax()]
        seen.add(sample["class_label"])
    assert seen == set(range(10)) and FashionScenes(folder=folder).info.class_names == FASHION_NAMES


def test_sizes_differ_by_a_factor_of_four_and_objects_are_turned(folder):
    found = samples(folder, count=80)
    sides = torch.cat([(sample["boxes"][:, 2:] - sample["boxes"][:, :2]).amax(1) for sample in found])
    assert sides.max() / sides.min() >= 4
    # A solid rectangle that is not turned fills its box.
    filled = [
        float((s["sem_seg"][y0:y1, x0:x1] == label + 1).float().mean())
        for s in found
        for (x0, y0, x1, y1), label in zip(s["boxes"].int().tolist(), s["box_labels"], strict=True)
    ]
    assert np.mean(filled) < 0.9


def test_the_dark_inside_of_an_object_belongs_to_it(folder):
    dataset = FashionScenes(folder=folder)
    for seed in range(20):
        item = dataset.render(np.random.default_rng(seed), 40.0)
        assert item.mask[item.mask.shape[0] // 2, item.mask.shape[1] // 2]


def test_a_sample_is_a_function_of_seed_split_and_index(folder):
    first, again, other = (FashionScenes(seed=seed, folder=folder)[5] for seed in (1, 1, 2))
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    assert not torch.equal(first["image"], other["image"])


def test_missing_and_broken_files_are_one_sentence(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        build_dataset("fashion_scenes_train", folder=str(tmp_path))
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03 no such file")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not a whole file"):
        build_dataset("fashion_scenes_train", folder=str(tmp_path))
