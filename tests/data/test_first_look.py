"""Labels that are missing or say nothing come up before anything is trained on them."""

import json

import cv2
import numpy as np
import pytest

from d2go_fbnetv5.data import (
    CocoDetection,
    DigitScenes,
    ImageFolders,
    MultitaskDataset,
    SemSegFolder,
    look_at_sets,
)
from d2go_fbnetv5.utils.errors import InputError


@pytest.fixture
def multitask(tmp_path):
    """A set of two images of 8 x 6, changed by a function of its index."""

    def build(change=lambda index: None, name="index"):
        index = {
            "images": [
                {"id": k, "file_name": f"{k}.png", "height": 6, "width": 8, "class_label": 0,
                 "sem_seg_file_name": f"m{k}.png"}
                for k in (0, 1)
            ],
            "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 3, 3]}],
            "categories": [{"id": 1, "name": "cat"}],
            "class_names": ["x", "y"],
            "sem_seg_names": ["s", "t"],
        }  # fmt: skip
        for k in (0, 1):
            cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((6, 8, 3), 99, np.uint8))
            cv2.imwrite(str(tmp_path / f"m{k}.png"), np.arange(48).reshape(6, 8).astype(np.uint8) % 2)
        change(index)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(index))
        return MultitaskDataset(path)

    return build


def no_classes(index):
    for image in index["images"]:
        image["class_label"] = None


def no_boxes(index):
    index["annotations"][0]["iscrowd"] = 1


def no_maps(index):
    for image in index["images"]:
        del image["sem_seg_file_name"]


def test_nothing_is_said_of_a_labelled_set(multitask, caplog):
    dataset = multitask()
    assert dataset.label_counts == {"class_label": 2, "boxes": 1, "sem_seg": 2, "depth": 0}
    look_at_sets("DATASETS.TRAIN", {"mine": dataset})
    look_at_sets("DATASETS.TRAIN", {"digits": DigitScenes(size=64, num_images=4)})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            no_classes,
            "DATASETS.TRAIN, mine: there are class_names, but no image has a class_label: cls learns nothing",
        ),
        (no_boxes, "there are box_names, but no image has a box that is no crowd: det learns nothing"),
        (no_maps, "there are sem_seg_names, but no image has a label map: seg learns nothing"),
    ],
)
def test_a_task_that_no_image_is_labelled_for_is_warned_of(multitask, change, message, caplog):
    look_at_sets("DATASETS.TRAIN", {"mine": multitask(change)})
    assert message in caplog.text and len(caplog.records) == 1


def test_sets_that_are_labelled_for_different_tasks_are_one(multitask, caplog):
    look_at_sets("DATASETS.TRAIN", {"a": multitask(no_classes, "a"), "b": multitask(no_maps, "b")})
    assert caplog.text == ""


def test_a_set_without_any_label_is_refused(multitask, tmp_path):
    def nothing(index):
        for change in (no_classes, no_boxes, no_maps):
            change(index)

    with pytest.raises(
        InputError, match="DATASETS.TEST, mine: no image has a class_label and no image has a box"
    ):
        look_at_sets("DATASETS.TEST", {"mine": multitask(nothing)})
    empty = CocoDetection(multitask(lambda index: index["annotations"].clear()).path, tmp_path)
    with pytest.raises(InputError, match="no image has a box that is no crowd, so there is nothing to learn"):
        look_at_sets("DATASETS.TRAIN", {"coco": empty})
    folder = ImageFolders(tmp_path)  # of images alone, which nobody said had classes
    look_at_sets("DATASETS.TRAIN", {"folder": folder})


def test_files_that_do_not_fit_come_up_at_once(multitask, tmp_path):
    dataset = multitask()
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((8, 6, 3), np.uint8))
    with pytest.raises(InputError, match="1.png is 6x8 .*, expected 8x6; was it turned upright"):
        look_at_sets("DATASETS.TRAIN", {"mine": dataset})
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image .*1.png does not exist"):
        look_at_sets("DATASETS.TRAIN", {"mine": dataset})


def test_a_single_class_is_warned_of(multitask, caplog):
    dataset = multitask(lambda index: index.update(class_names=["x"]))
    look_at_sets("DATASETS.TRAIN", {"mine": dataset})
    assert "DATASETS.TRAIN, mine: class_names has one name, x, so nothing is told apart" in caplog.text


def maps(folder, values):
    for kind in "im":
        (folder / kind).mkdir(exist_ok=True)
    for number, value in enumerate(values):
        cv2.imwrite(str(folder / "i" / f"{number}.png"), np.zeros((4, 6, 3), np.uint8))
        cv2.imwrite(str(folder / "m" / f"{number}.png"), np.resize(np.array(value, np.uint8), (4, 6)))
    return SemSegFolder(folder / "i", folder / "m", ["background", "digit"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 255]] * 3, "in the 3 label maps that were looked at every pixel is of class 0 (background) or don't care "
         "(255). If 255 stands for a class in these files, reader sem_seg_folder needs values [0, 255]"),
        ([[0]] * 3, "every pixel is of class 0 (background), so nothing is told apart"),
        ([[1, 255]] * 40, "in the 16 label maps that were looked at every pixel is of class 1 (digit) or don't care"),
        ([[255], [0, 1], [255]], "2 of 3 label maps that were looked at are don't care (255) everywhere, such as that"),
    ],
)  # fmt: skip
def test_maps_that_tell_nothing_apart_are_warned_of(tmp_path, values, message, caplog):
    look_at_sets("DATASETS.TRAIN", {"maps": maps(tmp_path, values)})
    assert message in caplog.text and len(caplog.records) == 1


def test_maps_of_other_values_are_refused_before_training(tmp_path):
    with pytest.raises(
        InputError, match="has the value 128, allowed are 0 to 1, and 255 .*; options values and"
    ):
        look_at_sets("DATASETS.TRAIN", {"maps": maps(tmp_path, [[0, 1], [0, 128]])})
