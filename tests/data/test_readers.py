"""ImageNet-like folders, COCO json, and label map folders such as ADE20K's."""

import json

import cv2
import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import CocoDetection, ImageNetFolder, SemSegFolder, ade20k, build_dataset
from d2go_fbnetv5.data.ade20k import ADE20K_NAMES
from d2go_fbnetv5.utils.errors import InputError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def colour(height=10, width=20, value=0):
    return np.full((height, width, 3), value, np.uint8)


def test_classes_are_the_sorted_folders(tmp_path):
    for number, name in enumerate(("n02/b.jpg", "n01/deep/a.png", "n01/z.JPEG", "n02/a.jpg")):
        write(tmp_path / name, colour(10 + number))
    dataset = build_dataset("imagenet", root=str(tmp_path))
    assert dataset.info.class_names == ("n01", "n02") and len(dataset) == 4
    samples = [dataset[index] for index in range(4)]
    assert [sample["class_label"] for sample in samples] == [0, 0, 1, 1]
    assert [sample["image_id"] for sample in samples] == [0, 1, 2, 3]
    assert sorted(sample["height"] for sample in samples) == [10, 11, 12, 13]
    assert samples[0].keys() == {"image", "class_label", "image_id", "height", "width"}


def test_bad_class_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of classes .*none does not exist"):
        ImageNetFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="class folder"):
        ImageNetFolder(tmp_path)
    (tmp_path / "n01").mkdir()
    with pytest.raises(FileNotFoundError, match="n01"):
        ImageNetFolder(tmp_path)
    (tmp_path / "n01" / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="image .*a.jpg is broken"):
        ImageNetFolder(tmp_path)[0]


@pytest.fixture
def coco(tmp_path):
    def build(change=lambda index: None):
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            write(tmp_path / "images" / name, colour())
        polygon, runs = [[1, 1, 4, 1, 4, 4]], {"counts": [5, 195], "size": [10, 20]}
        index = {
            "info": {},
            "images": [{"id": k * 100, "file_name": f"{k}.jpg", "height": 10, "width": 20} for k in (1, 2, 3)],
            "annotations": [
                {"id": 1, "image_id": 300, "category_id": 90, "bbox": [1, 1, 3, 3], "iscrowd": 0, "area": 9,
                 "segmentation": polygon},
                {"id": 2, "image_id": 100, "category_id": 1, "bbox": [2, 2, 30, 3], "iscrowd": 0},
                {"id": 3, "image_id": 200, "category_id": 90, "bbox": [0, 0, 20, 10], "iscrowd": 1,
                 "segmentation": runs},
                {"id": 4, "image_id": 300, "category_id": 13, "bbox": [5, 5, 2.5, 2], "iscrowd": 0},
                {"id": 5, "image_id": 300, "category_id": 13, "bbox": [5, 5, 0, 2], "iscrowd": 0},
            ],
            "categories": [{"id": 90, "name": "z"}, {"id": 1, "name": "y"}, {"id": 13, "name": "x"}],
        }  # fmt: skip
        change(index)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(index))
        return {"annotations_json": path, "image_root": tmp_path / "images"}

    return build


def test_coco_boxes(coco):
    dataset = build_dataset("coco", **coco())
    assert dataset.info.box_names == ("y", "x", "z") and len(dataset) == 3
    first, second, third = (dataset[index] for index in range(3))
    assert first["boxes"].tolist() == [[2, 2, 20, 5]]
    assert second["box_is_crowd"].tolist() == [True]
    assert third["boxes"].tolist() == [[1, 1, 4, 4], [5, 5, 7.5, 7]] and third["box_labels"].tolist() == [
        2,
        1,
    ]
    assert third["box_is_crowd"].tolist() == [False, False]
    assert [sample["image_id"] for sample in (first, second, third)] == [100, 200, 300]
    assert dataset.sizes.tolist() == [[10, 20]] * 3


def test_objects_keep_the_areas_of_their_masks(coco):
    def areas(index):
        for annotation, area in zip(index["annotations"], (4.5, 54, 7, None, 1), strict=True):
            annotation["area"] = area

    dataset = CocoDetection(**coco(areas))
    found = [dataset[index]["box_areas"] for index in range(3)]
    # Annotation 4 has none, so its box's; 5, without a box, is left out.
    assert [values.tolist() for values in found] == [[54], [7], [4.5, 2.5 * 2]]
    assert found[0].dtype == torch.float64
    assert "box_areas" not in CocoDetection(**coco(lambda index: None))[0]


@pytest.mark.parametrize("area", [-1, "9", True, [9], float("nan"), float("inf"), 10**400])
def test_an_area_that_is_none_is_refused(coco, area):
    with pytest.raises(InputError, match="instances.json: annotation 1 of image 300 has area .*at least 0"):
        CocoDetection(**coco(lambda index: index["annotations"][0].update(area=area)))


def test_boxes_that_are_changed_are_reported(coco, caplog):
    CocoDetection(**coco())
    assert "1 of 5 boxes without area are left out, such as bbox [5, 5, 0, 2] of annotation 5" in caplog.text
    assert (
        "1 of 5 boxes reach outside of their image and are cut off, such as bbox [2, 2, 30, 3]" in caplog.text
    )


def test_images_that_nobody_labelled_are_no_images_without_objects(coco):
    """As `pseudo_label` marks them; the reader of that format knows the mark."""
    message = "has_boxes is false of 1 of [0-9]+ images, such as .* READER: multitask"
    with pytest.raises(InputError, match=message):
        CocoDetection(**coco(lambda index: index["images"][0].update(has_boxes=False)))
    CocoDetection(**coco(lambda index: index["images"][0].update(has_boxes=True)))


def test_empty_images_can_be_left_out(coco):
    def empty_first(index):
        del index["annotations"][1]

    kept = CocoDetection(**coco(empty_first))
    assert kept[0]["boxes"].shape == (0, 4) and kept[0]["box_is_crowd"].dtype == torch.bool
    without = CocoDetection(**coco(empty_first), keep_empty=False)
    assert [without[index]["image_id"] for index in range(len(without))] == [300]
    with pytest.raises(ValueError, match="keep_empty=False leaves none"):
        CocoDetection(**coco(lambda index: index.update(annotations=[])), keep_empty=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("annotations"), "'annotations' is missing"),
        (lambda index: index["annotations"][0].update(category_id=2), "category_id 2, allowed are 1, 13, 90"),
        (lambda index: index["annotations"][0].update(image_id=[1]), r"image_id \[1\], but"),
        (lambda index: index["images"][0].pop("width"), "lacks 'width'"),
    ],
)
def test_bad_coco(coco, change, message):
    with pytest.raises(ValueError, match=f"instances.json.*{message}"):
        CocoDetection(**coco(change))


def test_ade20k_labels(tmp_path):
    assert len(ADE20K_NAMES) == len(set(ADE20K_NAMES)) == 150
    assert (ADE20K_NAMES[0], ADE20K_NAMES[12], ADE20K_NAMES[149]) == ("wall", "person", "flag")
    labels = np.zeros((10, 20), np.uint8)
    labels[0, :3] = 1, 150, 13
    write(tmp_path / "images" / "validation" / "a.jpg", colour())
    write(tmp_path / "annotations" / "validation" / "a.png", labels)
    dataset = build_dataset("ade20k", root=tmp_path, split="validation")
    assert dataset.info.sem_seg_names == ADE20K_NAMES
    assert dataset[0]["sem_seg"][0, :4].tolist() == [0, 149, 12, 255]
    assert dataset[0]["sem_seg"].dtype == torch.int64

    write(tmp_path / "annotations" / "validation" / "a.png", np.full((10, 20), 151, np.uint8))
    with pytest.raises(
        ValueError, match=r"a.png has the value 151, allowed are 1 to 150, and 0 \(don't care\)"
    ):
        dataset[0]
    with pytest.raises(ValueError, match="split is 'val', allowed are training, validation"):
        ade20k(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="folder of images .*training does not exist"):
        ade20k(tmp_path)


def test_label_maps_with_gaps(tmp_path):
    labels = np.array([[0, 2, 7, 255], [7, 7, 0, 2]], np.uint8)
    write(tmp_path / "i" / "sub" / "a.jpg", colour(2, 4))
    write(tmp_path / "m" / "sub" / "a.png", labels)
    options = {"image_root": tmp_path / "i", "map_root": tmp_path / "m", "names": ["a", "b", "c"]}
    dataset = build_dataset("sem_seg_folder", **options, values=[0, 2, 7])
    assert dataset[0]["sem_seg"].tolist() == [[0, 1, 2, 255], [2, 2, 0, 1]]
    with pytest.raises(ValueError, match=r"has the value 7, allowed are 0 to 2, and 255"):
        SemSegFolder(**options)[0]

    write(tmp_path / "m" / "sub" / "a.png", labels[:, :3])
    with pytest.raises(ValueError, match="a.png is 3x2 .* expected 4x2"):
        dataset[0]
    (tmp_path / "m" / "sub" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="image .*a.jpg has no label map .*a.png"):
        SemSegFolder(**options)
    with pytest.raises(ValueError, match="one number of at least 0 for each of 3 names"):
        SemSegFolder(**options, values=[1, 2])
    with pytest.raises(ValueError, match="the value 2 is a class and in ignore_values"):
        SemSegFolder(**options, ignore_values=[2])
