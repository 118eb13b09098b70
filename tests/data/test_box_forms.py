"""Boxes that are something else than x, y, width, height in pixels are refused; right and careless ones are not."""

import json

import numpy as np
import pytest

from d2go_fbnetv5.data.coco import CocoDetection
from d2go_fbnetv5.data.multitask import MultitaskDataset
from d2go_fbnetv5.utils.errors import InputError

READERS = {
    "coco": lambda path: CocoDetection(path, path.parent),
    "multitask": MultitaskDataset,
}


def boxes_of(seed, count, width=640, height=360):
    """Right boxes anywhere in an image, as XYWH."""
    rng = np.random.default_rng(seed)
    xs, ys = rng.uniform(0, width, (count, 2)), rng.uniform(0, height, (count, 2))
    x, y = xs.min(1), ys.min(1)
    return np.stack([x, y, xs.max(1) - x, ys.max(1) - y], 1).round(2)


FORMS = {
    "corners x1, y1, x2, y2": lambda x, y, w, h: (x, y, x + w, y + h),
    "corners x1, x2, y1, y2": lambda x, y, w, h: (x, x + w, y, y + h),
    "y, x, height, width": lambda x, y, w, h: (y, x, h, w),
    "corners y1, x1, y2, x2": lambda x, y, w, h: (y, x, y + h, x + w),
    "centres": lambda x, y, w, h: (x + w / 2, y + h / 2, w, h),
}


@pytest.fixture
def write(tmp_path):
    def build(boxes, areas=None):
        index = {
            "images": [{"id": 1, "file_name": "1.png", "height": 360, "width": 640}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
                for number, box in enumerate(np.asarray(boxes).tolist())
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        for annotation, area in zip(index["annotations"], [] if areas is None else areas, strict=False):
            annotation["area"] = float(area)
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(index))
        return path

    return build


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_another_form_is_refused_by_name(write, reader, form, seed):
    boxes = np.stack(FORMS[form](*boxes_of(seed, 30).T), 1)
    with pytest.raises(InputError, match=f"boxes.json: the boxes look like {form}.*of annotation"):
        READERS[reader](write(boxes))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("corners", [False, True])
def test_shares_of_the_image_are_refused(write, reader, corners):
    x, y, w, h = (boxes_of(3, 5) / [640, 360, 640, 360]).T
    boxes = np.stack([x, y, x + w, y + h] if corners else [x, y, w, h], 1)
    with pytest.raises(
        InputError, match="boxes.json: 5 of 5 boxes look like shares of their image, such as bbox"
    ):
        READERS[reader](write(boxes))


@pytest.mark.parametrize("scale", [[2.8, 2.8], [1000 / 640, 1000 / 360]])
def test_boxes_of_a_larger_image_or_in_thousandths_are_refused(write, scale):
    with pytest.raises(InputError, match="[2-4][0-9] of 40 boxes reach far outside of their image, such as"):
        READERS["coco"](write(boxes_of(5, 40) * [*scale, *scale]))


def test_areas_that_do_not_fit_their_boxes_are_warned_of(write, caplog):
    boxes = boxes_of(6, 10) + [0, 0, 5, 5]
    boxes[:, :2] = np.minimum(boxes[:, :2], [640, 360] - boxes[:, 2:])
    own = boxes[:, 2:].prod(1)
    for areas in (own / 640 / 360, own * 0, own * 4):
        caplog.clear()
        READERS["coco"](write(boxes, areas))
        assert (
            "10 of 10 areas are greater than their boxes or less than a hundredth of them, such as"
            in caplog.text
        )
    caplog.clear()
    READERS["coco"](write(boxes, np.where(np.arange(10) < 5, own * 4, own * 0.6)))
    assert caplog.text == ""


@pytest.mark.parametrize("key", ["annotations", "bbox", "id"])
@pytest.mark.parametrize("reader", READERS)
def test_a_key_that_stands_twice_is_named(write, reader, key):
    path = write(boxes_of(7, 2))
    path.write_text(path.read_text().replace(f'"{key}":', f'"{key}": [], "{key}":', 1))
    with pytest.raises(InputError, match=f"boxes.json: the key '{key}' stands twice in one object"):
        READERS[reader](path)


def test_names_of_files_that_are_no_utf8_are_read(write):
    path = write(boxes_of(8, 2))
    path.write_text(path.read_text().replace("1.png", "\\udcff.png"))
    assert CocoDetection(path, path.parent).image_path(0).name == "\udcff.png"


def test_areas_tell_corners_that_lie_inside(write):
    x, y, w, h = (boxes_of(4, 6) / 3).T
    corners = np.stack([x, y, x + w, y + h], 1)
    with pytest.raises(InputError, match="the boxes look like corners x1, y1, x2, y2"):
        READERS["coco"](write(corners, w * h))
    READERS["coco"](write(corners))  # nobody could tell


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(20))
def test_right_boxes_are_taken_without_a_word(write, reader, seed, caplog):
    for count in (1, 2, 3, 10, 200):
        boxes = boxes_of(seed, count)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
        boxes[:, :2] = np.minimum(boxes[:, :2], [640, 360] - boxes[:, 2:])
        READERS[reader](write(boxes, boxes[:, 2:].prod(1) * 0.7))
    assert caplog.text == ""


def test_careless_boxes_are_cut_off_with_a_warning(write, caplog):
    boxes = boxes_of(1, 40)
    boxes[::3, 0] = 640 - boxes[::3, 2] + 3
    READERS["coco"](write(boxes))
    assert "14 of 40 boxes reach outside of their image and are cut off, such as bbox" in caplog.text
    # People who are only partly in the picture: far outside, to all sides.
    boxes = boxes_of(2, 60) * 1.3 - [90, 50, 0, 0]
    READERS["coco"](write(boxes))


def test_boxes_of_a_smaller_copy_are_warned_of(write, caplog):
    MultitaskDataset(write(boxes_of(1, 60) / 2))
    assert "none of 60 boxes reaches beyond 50 % of its image's width and 50 % of its height" in caplog.text


def test_boxes_that_stand_there_twice_and_categories_without_one_are_warned_of(write, caplog):
    boxes = boxes_of(9, 5)
    path = write([*boxes, boxes[2], boxes[2], boxes[4]])
    index = json.loads(path.read_text())
    index["categories"] = [{"id": 0, "name": "objects"}, *index["categories"]]
    path.write_text(json.dumps(index))
    dataset = CocoDetection(path, path.parent)
    assert dataset.info.box_names == ("objects", "cat") and dataset.label_counts["boxes"] == 8
    twice = (
        f"3 of 8 boxes stand there twice, with the same image and category, such as bbox {boxes[2].tolist()}"
    )
    assert f"{twice} of annotation 5" in caplog.text
    assert "1 of 2 categories have no box, such as 'objects'; they are classes all the same" in caplog.text
    caplog.clear()
    index["annotations"][0]["category_id"] = 0
    index["annotations"][5]["category_id"] = 0
    del index["annotations"][6:]
    path.write_text(json.dumps(index))
    CocoDetection(path, path.parent)
    assert caplog.text == ""


def test_names_and_files_that_are_alike_are_warned_of(tmp_path, caplog):
    image = {"file_name": "1.png", "height": 3, "width": 3}
    index = {"images": [{"id": 5, **image}, {"id": 6, **image}], "class_names": ["cat", "dog", " Cat", "dog"]}
    (tmp_path / "i.json").write_text(json.dumps(index), encoding="utf-8-sig")
    MultitaskDataset(tmp_path / "i.json")
    assert (
        "2 of 4 names are like another one, such as 'cat' and ' Cat'; they are classes of their own"
        in caplog.text
    )
    assert "1 of 2 images have the file of another one, such as images 5 and 6, 1.png" in caplog.text


def test_json_of_endless_depth_is_one_sentence(tmp_path):
    (tmp_path / "i.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="i.json: is nested too deeply"):
        MultitaskDataset(tmp_path / "i.json")
