"""Thousands of broken indexes, images and label maps: each is read right or refused in one sentence.

Seeded, so that a failure is the same again: its message has the seed and what was changed.
"""

import copy
import json
import math
import random
import resource

import cv2
import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import CocoDetection, MultitaskDataset, SemSegFolder
from d2go_fbnetv5.data.images import read_image, read_label_map
from d2go_fbnetv5.utils.errors import InputError

SIZES = {1: (16, 20), 2: (24, 12), 7: (16, 16)}
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400,
    0.0, 0.5, 1.0, -0.5, 1e30, -1e30, 1e308, math.nan, math.inf, -math.inf, "", " ", "0", "1", "true", "cat", "a/b.png",
    "../set/1.png", "\0", "\ud800", "\udcff.png", "x" * 5000, "[red]x[/y]", "猫", [], [1], [1, 2, 3, 4], [[1]], {},
    {"id": 1}, [None] * 4, ["1", "2", "3", "4"], [0.1, 0.1, 0.5, 0.5], [0, 0, 1e30, 1e30], [1, 1, 10**400, 1],
]  # fmt: skip


def whole_index():
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width, "class_label": number % 2,
             "sem_seg_file_name": f"m{number}.png", "has_boxes": True}
            for number, (height, width) in SIZES.items()
        ],
        "annotations": [
            {"id": 10 + place, "image_id": number, "category_id": 5 + place % 2 * 4, "bbox": box,
             "iscrowd": 0, "area": 9.5}
            for place, (number, box) in enumerate(
                [(1, [1, 2, 10, 8]), (1, [0, 0, 20, 16]), (2, [3.5, 4, 5, 6.25]), (7, [8, 8, 8, 8])]
            )
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        "class_names": ["in", "out"],
        "sem_seg_names": ["a", "b", "c"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images and maps of whole_index, in one folder."""
    path = tmp_path_factory.mktemp("fuzz") / "set"
    path.mkdir()
    rng = np.random.default_rng(5)
    for number, (height, width) in SIZES.items():
        cv2.imwrite(str(path / f"{number}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))
        cv2.imwrite(str(path / f"m{number}.png"), rng.integers(0, 3, (height, width), np.uint8))
    return path


def places_of(value, path=()):
    """The paths of all values in a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places_of(value[key], (*path, key))


def mutate(index, rng):
    """Changes one to three values of an index in place; returns what was changed, for messages."""
    changes = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice([place for place in places_of(index) if place])
        owner = index
        for key in path[:-1]:
            owner = owner[key]
        kind = rng.choice(["set", "set", "set", "delete", "repeat", "swap"])
        if kind == "delete":
            del owner[path[-1]]
        elif kind == "repeat" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[path[-1]]))
        elif kind == "swap" and isinstance(owner, dict):
            other = rng.choice(list(owner))
            owner[path[-1]], owner[other] = owner[other], owner[path[-1]]
        else:
            owner[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        changes.append((kind, path))
    return changes


def refused(action):
    """None if the action is refused as the user's input may be, else what it returns. Others raise."""
    try:
        return action()
    except (InputError, OSError) as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 6000
        return None


def is_whole(value):
    return type(value) is int and -(2**63) <= value < 2**63


def assert_read_right(dataset, index, with_all_labels):
    """What a data set gives is what its index says, read by other code."""
    images = index["images"]
    assert all(is_whole(image["id"]) and is_whole(image["height"]) for image in images)
    assert len(dataset) == len(images) and [int(i) for i in dataset.sizes[:, 0]] == [
        i["height"] for i in images
    ]
    categories = sorted(index.get("categories", []), key=lambda category: category["id"])
    for place, image in enumerate(images):
        sample = refused(lambda place=place: dataset[place])
        if sample is None:
            continue
        height, width = image["height"], image["width"]
        assert sample["image"].shape == (3, height, width) and sample["image_id"] == image["id"]
        if with_all_labels:
            label = image.get("class_label")
            assert sample.get("class_label") == label and not isinstance(label, bool)
            assert label is None or index["class_names"][label]
            assert ("sem_seg" in sample) == (image.get("sem_seg_file_name") is not None)
            if "sem_seg" in sample:
                found = set(sample["sem_seg"].unique().tolist())
                assert found <= {*range(len(index["sem_seg_names"])), 255}
        if "boxes" not in sample:
            assert with_all_labels and (image.get("has_boxes") is False or "annotations" not in index)
            continue
        expected = []
        for annotation in index["annotations"]:
            assert all(type(number) in (int, float) for number in annotation["bbox"])
            assert annotation.get("iscrowd", 0) in (0, 1) and not isinstance(annotation.get("iscrowd"), str)
            x, y, w, h = annotation["bbox"]
            left, right = (min(max(value, 0), width) for value in (x, x + w))
            top, bottom = (min(max(value, 0), height) for value in (y, y + h))
            if annotation["image_id"] == image["id"] and right > left and bottom > top:
                name = [category["id"] for category in categories].index(annotation["category_id"])
                area = annotation.get("area")
                area = (right - left) * (bottom - top) if area is None else float(area)
                expected.append((left, top, right, bottom, name, bool(annotation.get("iscrowd", 0)), area))
        assert len(sample["boxes"]) == len(expected)
        if expected:
            *corners, labels, crowd, areas = (
                torch.tensor(column, dtype=torch.float64) for column in zip(*expected, strict=True)
            )
            assert torch.allclose(sample["boxes"].double(), torch.stack(corners, 1), rtol=1e-6)
            assert sample["box_labels"].tolist() == labels.tolist()
            assert sample.get("box_is_crowd", torch.zeros(len(labels))).tolist() == crowd.tolist()
            if "box_areas" in sample:
                assert torch.allclose(sample["box_areas"], areas, rtol=1e-6)


def check_index(folder, seed):
    rng = random.Random(seed)
    index = whole_index()
    changes = mutate(index, rng)
    text = json.dumps(index)
    if rng.random() < 0.05:
        text = text[: rng.randrange(len(text))]
        changes.append("cut")
    path = folder / "index.json"
    path.write_text(text, encoding="utf-8")
    try:
        for open_set, complete in (
            (MultitaskDataset, True),
            (lambda path: CocoDetection(path, folder), False),
        ):
            dataset = refused(lambda open_set=open_set: open_set(path))
            if dataset is not None:
                assert_read_right(dataset, index, complete)
    except Exception as error:
        raise AssertionError(f"seed {seed}, changed {changes}") from error


def check_file(folder, seed):
    """A file of an image or a map with bytes cut, changed, repeated or of another kind."""
    rng = random.Random(seed)
    kind = rng.choice([".png", ".jpg", ".webp", ".tiff", ".bmp", ".ppm"])
    pixels = np.random.default_rng(seed).integers(0, 3, (24, 18, rng.choice([1, 3, 4])), np.uint8)
    if kind == ".png" and rng.random() < 0.3:
        pixels = pixels.astype(np.uint16) * rng.choice([1, 16, 20000])
    if kind in (".jpg", ".bmp", ".ppm"):
        pixels = np.repeat(pixels, 3, 2)[..., :3]
    data = bytearray(cv2.imencode(kind, pixels)[1].tobytes())
    for _ in range(rng.choice([1, 1, 2, 5])):
        # Most of what a reader decides on stands in the first bytes.
        place = rng.randrange(min(len(data), rng.choice([40, len(data)])))
        change = rng.choice(["cut", "set", "set", "set", "large", "repeat"])
        if change == "cut":
            del data[max(1, place) :]
        elif change == "set":
            data[place] = rng.randrange(256)
        elif change == "large":
            data[place : place + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\0\0\x7f\xff", b"\0\0\0\0", b"\x7f\xff\0\0"]
            )
        else:
            data[place:place] = data[place : place + 16]
    path = folder / f"broken{kind}"
    path.write_bytes(data)
    try:
        image = refused(lambda: read_image(path))
        if image is not None:
            assert image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3 and image.numel()
        expected = refused(lambda: read_image(path, (24, 18)))
        assert expected is None or expected.shape == (3, 24, 18)
        labels = refused(lambda: read_label_map(path, (24, 18)))
        assert labels is None or (labels.shape == (24, 18) and labels.min() >= 0)
    except Exception as error:
        raise AssertionError(f"seed {seed}, {path.name}") from error


def check_folder(folder, seed):
    """Options of a reader of label maps, of any kind."""
    rng = random.Random(seed)
    options = {"names": ["a", "b", "c"], "values": [0, 1, 2], "ignore_values": [255]}
    for name in rng.sample(sorted(options), rng.choice([1, 1, 2])):
        if rng.random() < 0.5:
            options[name][rng.randrange(len(options[name]))] = rng.choice(VALUES)
        else:
            options[name] = rng.choice([value for value in VALUES if isinstance(value, list | str)])
    try:
        dataset = refused(lambda: SemSegFolder(folder / "i", folder / "m", **options))
        sample = None if dataset is None else refused(lambda: dataset[0])
        if sample is not None:
            written = cv2.imread(str(folder / "m" / "1.png"), cv2.IMREAD_UNCHANGED)
            values = options["values"]
            for value in np.unique(written).tolist():
                label = values.index(value) if value in values else 255
                assert (sample["sem_seg"].numpy()[written == value] == label).all()
    except Exception as error:
        raise AssertionError(f"seed {seed}, {options}") from error


@pytest.fixture(scope="module")
def folders(folder):
    for kind, name in (("i", "1.png"), ("m", "m1.png")):
        (folder / kind).mkdir()
        (folder / kind / "1.png").write_bytes((folder / name).read_bytes())
    return folder


def run(check, folder, seeds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        check(folder, seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # kilobytes


CHECKS = pytest.mark.parametrize("check", [check_index, check_file, check_folder])


def test_the_whole_index_is_read_right(folder):
    path = folder / "index.json"
    path.write_text(json.dumps(whole_index()))
    for dataset, complete in ((MultitaskDataset(path), True), (CocoDetection(path, folder), False)):
        assert_read_right(dataset, whole_index(), complete)
        assert [len(dataset[place]["boxes"]) for place in range(3)] == [2, 1, 1]


@CHECKS
def test_what_is_broken_is_refused_or_read_right(folders, check):
    run(check, folders, range(100))


@pytest.mark.slow
@CHECKS
@pytest.mark.parametrize("part", range(4))
def test_much_that_is_broken_is_refused_or_read_right(folders, check, part):
    run(check, folders, range(1000 * (part + 1), 1000 * (part + 1) + 750))
