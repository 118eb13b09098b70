import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from d2go_fbnetv5.data import DigitScenes, MultitaskDataset, write_multitask


def small_index():
    """Two images of 20x10 (width x height), the first with two boxes, and a map."""
    return {
        "images": [
            {
                "id": 7,
                "file_name": "a.png",
                "height": 10,
                "width": 20,
                "class_label": 1,
                "sem_seg_file_name": "m.png",
            },
            {"id": 3, "file_name": "b.png", "height": 10, "width": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 20, 10]},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat"}],
        "class_names": ["x", "y"],
        "sem_seg_names": ["s", "t", "u"],
    }


@pytest.fixture
def make(tmp_path):
    """Writes the small set with its index changed by a function; gives the index's path."""

    def build(change=lambda index: None):
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(tmp_path / name), np.full((10, 20, 3), (10, 20, 30), np.uint8))
        labels = np.zeros((10, 20), np.uint8)
        labels[:, 5:] = 2
        labels[0] = 255
        cv2.imwrite(str(tmp_path / "m.png"), labels)
        index = small_index()
        change(index)
        path = tmp_path / "index.json"
        path.write_text(json.dumps(index))
        return path

    return build


def test_reads_all_labels(make):
    dataset = MultitaskDataset(make())
    assert dataset.info.class_names == ("x", "y") and dataset.info.sem_seg_names == ("s", "t", "u")
    assert dataset.info.box_names == ("cat", "dog")
    first, second = dataset[0], dataset[1]
    assert first["image"].dtype == torch.uint8 and first["image"][:, 0, 0].tolist() == [30, 20, 10]
    assert first["class_label"] == 1
    assert first["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 20, 10]] and first["box_labels"].tolist() == [
        1,
        0,
    ]
    assert first["sem_seg"][0].tolist() == [255] * 20 and first["sem_seg"][1].tolist() == [0] * 5 + [2] * 15
    assert (first["image_id"], first["height"], first["width"]) == (7, 10, 20)
    assert "box_is_crowd" not in first
    assert "class_label" not in second and "sem_seg" not in second
    assert second["boxes"].shape == (0, 4) and second["box_labels"].shape == (0,)
    assert dataset.sizes.tolist() == [[10, 20], [10, 20]]


def test_unlabelled_is_not_empty(make):
    dataset = MultitaskDataset(make(lambda index: index["images"][1].update(has_boxes=False)))
    assert "boxes" in dataset[0] and "boxes" not in dataset[1]
    without = MultitaskDataset(make(lambda index: index.pop("annotations")))
    assert without.info.box_names == () and "boxes" not in without[0]


def test_crowd_is_flagged(make):
    dataset = MultitaskDataset(make(lambda index: index["annotations"][1].update(iscrowd=1)))
    assert dataset[0]["box_is_crowd"].tolist() == [False, True]
    assert dataset[1]["box_is_crowd"].shape == (0,)


def test_rounding_errors_of_boxes_are_cut_off(make):
    dataset = MultitaskDataset(make(lambda index: index["annotations"][1].update(bbox=[-0.2, 0, 20.4, 10.3])))
    np.testing.assert_allclose(dataset[0]["boxes"][1], [0, 0, 20, 10])


def test_another_folder_of_images(make, tmp_path):
    path = make()
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "index.json")
    assert MultitaskDataset(moved, tmp_path)[0]["class_label"] == 1


def set_image(**values):
    return lambda index: index["images"][0].update(values)


def set_box(**values):
    return lambda index: index["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_box(bbox=[1, 2, 20, 4]), r"annotation 1 of image 7: bbox \[1, 2, 20, 4\] .* outside .* 20x10"),
        (set_box(bbox=[-1, 2, 3, 4]), "reaches outside of it"),
        (set_box(bbox=[30, 2, 3, 4]), "reaches outside of it"),
        (set_box(bbox=[1, 2, 0, 4]), "has no area"),
        (set_box(bbox=[5, 5, -2, 2]), "has no area"),
        (set_box(bbox=[1, 2, float("nan"), 4]), r"has bbox \[1, 2, nan, 4\], it must be four numbers"),
        (set_box(bbox=["1", "2", "3", "4"]), "it must be four numbers"),
        (set_box(bbox=[1, 2, 3, None]), "it must be four numbers"),
        (set_box(bbox=[1, 2, 3, 10**400]), "it must be four numbers"),
        (set_box(iscrowd="0"), "annotation 1 of image 7 has iscrowd '0', allowed are 0 and 1"),
        (set_box(iscrowd=0.5), "has iscrowd 0.5"),
        (set_box(iscrowd=None), "has iscrowd None"),
        (set_box(id="1"), "'annotations' has the id '1', it must be an integer of 64 bits"),
        (set_box(id=True), "'annotations' has the id True"),
        (set_box(image_id=7.0), r"annotation 1 has image_id 7.0, but 'images' has no such id"),
        (set_box(category_id="5"), "annotation 1 of image 7 has category_id '5', allowed are 5, 90"),
        (set_image(id=2**63), "'images' has the id 9223372036854775808, it must be an integer of 64 bits"),
        (set_image(id=1e30), r"'images' has the id 1e\+30, it must be"),
        (set_image(id=10**400), r"'images' has the id 1000+\.\.\., it must be"),
        (
            set_image(height=10**12),
            r"image 7 \(a.png\): height is 1000000000000, it must be .*1 to 2147483647",
        ),
        (set_image(width=20.0), r"width is 20.0, it must be an integer"),
        (set_image(height=True), r"height is True, it must be an integer"),
        (set_image(class_label=True), "class_label is True"),
        (set_image(class_label=1.0), "class_label is 1.0"),
        (set_image(file_name=""), "file_name is '', it must be a string that names a file"),
        (set_image(file_name="a\0.png"), "it must be a string that names a file"),
        (set_image(file_name="\ud800.png"), "it must be a string that names a file"),
        (set_image(sem_seg_file_name="\ud800.png"), "it must be a string that names a file"),
        (lambda index: index["categories"][0].update(id="90"), "'categories' has the id '90', it must be"),
        (lambda index: index["categories"][0].update(name=9), "names of 'categories' must be .*it has 9"),
        (lambda index: index["categories"][0].update(name=" "), "none of them empty, it has ' '"),
        (
            lambda index: index.update(class_names=["x", 2]),
            "'class_names' must be a list of strings, .*it has 2",
        ),
        (lambda index: index.update(class_names=["x", "\ud800"]), "'class_names' must be a list of strings"),
        (set_box(bbox=[1, 2, 3]), r"annotation 1 of image 7 has bbox \[1, 2, 3\], it must be four numbers"),
        (set_box(bbox="1 2 3 4"), "it must be four numbers"),
        (set_box(category_id=6), "annotation 1 of image 7 has category_id 6, allowed are 5, 90"),
        (set_box(image_id=8), "annotation 1 has image_id 8, but 'images' has no such id"),
        (set_box(id=2), "'annotations' has the id 2 more than once"),
        (set_image(class_label=2), r"image 7 \(a.png\): class_label is 2, allowed are 0 to 1"),
        (set_image(class_label=-1), "class_label is -1"),
        (set_image(class_label="x"), "class_label is 'x'"),
        (set_image(id=3), "'images' has the id 3 more than once"),
        (set_image(height="10"), "height is '10', it must be an integer"),
        (set_image(width=0), "width is 0"),
        (set_image(has_boxes=False), "has_boxes is false, but it has boxes"),
        (set_image(has_boxes="no"), "has_boxes is 'no', allowed are true and false"),
        (set_image(file_name=5), "file_name is 5, it must be a string"),
        (lambda index: index["images"][0].pop("height"), r"entry 0 \(id 7\) of 'images' lacks 'height'"),
        (
            lambda index: index["annotations"][1].pop("bbox"),
            r"entry 1 \(id 2\) of 'annotations' lacks 'bbox'",
        ),
        (lambda index: index["categories"][0].update(id=5), "'categories' has the id 5 more than once"),
        (lambda index: index.pop("categories"), "'categories' is missing"),
        (lambda index: index.pop("class_names"), "has class_label, but the index has no 'class_names'"),
        (
            lambda index: index.pop("sem_seg_names"),
            "has sem_seg_file_name, but the index has no 'sem_seg_names'",
        ),
        (lambda index: index.update(sem_seg_names=["n"] * 256), "256 names, allowed are at most 255"),
        (lambda index: index.update(class_names="xy"), "'class_names' must be a list of strings"),
        (lambda index: index.pop("images"), "'images' is missing"),
        (lambda index: index.update(images=[]), "'images' is empty"),
        (lambda index: index.update(images=[3]), "entry 0 of 'images' is 3"),
    ],
)
def test_bad_index(make, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        MultitaskDataset(make(change))
    assert "index.json" in str(caught.value) and "\n" not in str(caught.value)


def test_index_that_cannot_be_read(tmp_path, make):
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        MultitaskDataset(tmp_path / "none.json")
    path = make()
    with pytest.raises(FileNotFoundError, match="folder of images .*nowhere does not exist"):
        MultitaskDataset(path, tmp_path / "nowhere")
    path.write_text("{")
    with pytest.raises(ValueError, match="index.json: not JSON"):
        MultitaskDataset(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds a list, it must be an object"):
        MultitaskDataset(path)


def break_file(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write(pixels):
    return lambda path: cv2.imwrite(str(path), pixels)


@pytest.mark.parametrize(
    ("name", "damage", "kind", "message"),
    [
        ("a.png", lambda path: path.unlink(), FileNotFoundError, "image .*a.png does not exist"),
        ("a.png", break_file, ValueError, "image .*a.png is broken"),
        ("a.png", lambda path: path.write_bytes(b""), ValueError, "image .*a.png is broken"),
        ("a.png", lambda path: path.write_bytes(b"text"), ValueError, "image .*a.png is broken"),
        ("a.png", write(np.zeros((5, 20, 3), np.uint8)), ValueError, "a.png is 20x5 .* expected 20x10"),
        ("m.png", lambda path: path.unlink(), FileNotFoundError, "label map .*m.png does not exist"),
        ("m.png", break_file, ValueError, "label map .*m.png is broken"),
        ("m.png", lambda path: path.write_bytes(b"text"), ValueError, "label map .*m.png is broken"),
        ("m.png", write(np.zeros((10, 21), np.uint8)), ValueError, "m.png is 21x10 .* expected 20x10"),
        (
            "m.png",
            write(np.full((10, 20), 3, np.uint8)),
            ValueError,
            "m.png has the value 3, allowed are 0 to 2, and 255",
        ),
        (
            "m.png",
            write(np.zeros((10, 20, 3), np.uint8)),
            ValueError,
            "m.png has mode RGB, expected one channel",
        ),
    ],
)
def test_bad_files(make, tmp_path, name, damage, kind, message):
    dataset = MultitaskDataset(make())
    damage(tmp_path / name)
    with pytest.raises(kind, match=message):
        dataset[0]


def test_grey_and_transparent_and_16_bit_files(make, tmp_path):
    dataset = MultitaskDataset(make())
    cv2.imwrite(str(tmp_path / "a.png"), np.full((10, 20), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((10, 20, 4), (1, 2, 3, 4), np.uint8))
    cv2.imwrite(str(tmp_path / "m.png"), np.full((10, 20), 255, np.uint16))
    assert dataset[0]["image"].unique().tolist() == [9] and dataset[0]["image"].shape == (3, 10, 20)
    assert dataset[1]["image"][:, 0, 0].tolist() == [3, 2, 1]
    assert dataset[0]["sem_seg"].unique().tolist() == [255]


def test_palette_maps_give_their_indices(make, tmp_path):
    dataset = MultitaskDataset(make())
    palette = Image.fromarray(np.full((10, 20), 2, np.uint8), mode=None).convert("L")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "m.png")
    assert dataset[0]["sem_seg"].unique().tolist() == [2]


def test_camera_orientation_is_applied(make, tmp_path):
    path = make(lambda index: index["images"][1].update(height=20, width=10, file_name="b.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (20, 10)).save(tmp_path / "b.jpg", exif=exif)
    assert MultitaskDataset(path)[1]["image"].shape == (3, 20, 10)


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert type(value) is type(found[key])
        if isinstance(value, torch.Tensor):
            assert value.dtype == found[key].dtype and torch.equal(value, found[key])
        else:
            assert value == found[key]


def test_digit_scenes_round_trip(tmp_path):
    scenes = DigitScenes(size=(64, 80), num_images=12)
    dataset = MultitaskDataset(write_multitask(scenes, tmp_path / "set"))
    assert dataset.info == scenes.info and len(dataset) == 12
    for index in range(12):
        assert_same(scenes[index], dataset[index])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


class PartlyLabelled:
    """Scenes with one kind of label left out in turn, fractional boxes, crowds and areas of masks."""

    of_boxes = ("boxes", "box_labels", "box_is_crowd", "box_areas")

    def __init__(self):
        self.scenes = DigitScenes(size=64, num_images=8)
        self.info = self.scenes.info

    def __len__(self):
        return 8

    def __getitem__(self, index):
        sample = self.scenes[index]
        count = len(sample["boxes"])
        sample["boxes"] = sample["boxes"] * 0.987 + 0.123
        sample["box_is_crowd"] = torch.arange(count) % 2 == 0
        sample["box_areas"] = torch.linspace(1, 9.1, count, dtype=torch.float64)
        for key in (("class_label",), ("sem_seg",), self.of_boxes, ())[index % 4]:
            del sample[key]
        if index == 3:
            for key in self.of_boxes:
                sample[key] = sample[key][:0]
        return sample


def test_partly_labelled_samples_round_trip(tmp_path):
    written = PartlyLabelled()
    dataset = MultitaskDataset(write_multitask(written, tmp_path / "set"))
    for index in range(8):
        assert_same(written[index], dataset[index])


def test_writing_leaves_nothing_half_done(tmp_path):
    class Failing(PartlyLabelled):
        def __getitem__(self, index):
            if index == 5:
                raise ValueError("no such thing")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="no such thing"):
        write_multitask(Failing(), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "precious").touch()
    with pytest.raises(ValueError, match="exists already and is not an empty folder"):
        write_multitask(PartlyLabelled(), tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["precious"]
