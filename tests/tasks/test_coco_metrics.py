import contextlib
import io
import math

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.gather import warn_unlabelled

NAMES = ("a", "b", "c")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def sample(image_id, boxes, labels, size=(100, 100), **others):
    return {
        "image_id": image_id,
        "image": torch.zeros(3, *size, dtype=torch.uint8),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "box_labels": torch.tensor(labels, dtype=torch.int64),
        **others,
    }


def detections(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def evaluate(inputs, outputs, names=NAMES):
    metric = AveragePrecision(names)
    metric.process(inputs, outputs)
    return metric.evaluate()


def test_one_hit_and_one_miss_by_hand():
    # One of two objects found, exactly: precision 1 up to recall 0.5, which is 51 of the 101 recall points.
    inputs = [sample(0, [[0, 0, 20, 20], [50, 50, 70, 70]], [0, 0])]
    result = evaluate(inputs, [detections([[0, 0, 20, 20]], [0], [0.9])])
    expected = dict.fromkeys(("AP", "AP50", "AP75", "APs", "AP-a"), 51 / 101)
    assert result == pytest.approx({**expected, "APm": math.nan, "APl": math.nan}, nan_ok=True)


def test_thresholds_by_hand():
    # IoU 0.8: right at 0.5, 0.55, ..., 0.8 (7 of 10 thresholds).
    result = evaluate([sample(0, [[0, 0, 10, 10]], [1])], [detections([[0, 0, 10, 8]], [1], [0.5])])
    assert result["AP50"] == result["AP75"] == pytest.approx(1.0)
    assert result["AP"] == pytest.approx(0.7)


def test_a_crowd_is_neither_an_object_nor_makes_false_positives():
    boxes, crowd = [[0, 0, 20, 20], [40, 40, 90, 90]], torch.tensor([False, True])
    found = detections([[42, 42, 52, 52], [0, 0, 20, 20]], [0, 0], [0.9, 0.8])
    assert evaluate([sample(0, boxes, [0, 0], box_is_crowd=crowd)], [found])["AP"] == pytest.approx(1.0)
    assert evaluate([sample(0, boxes, [0, 0])], [found])["AP"] < 0.5


def test_all_is_counted_in_pixels_of_the_original_image():
    # The model saw it at a quarter of its width and half its height: 20 x 20 pixels of 80 x 40, a medium object.
    inputs = [sample(0, [[0, 0, 80, 40]], [0], height=200, width=400)]
    result = evaluate(inputs, [detections([[0, 0, 20, 20]], [0], [0.9])])
    assert result["AP"] == result["APm"] == pytest.approx(1.0)
    assert math.isnan(result["APs"])


def test_objects_are_as_large_as_the_data_set_says():
    # A box of 40 x 40 pixels around a mask of 800, small to COCO, and one of 20 x 20 that is said to be large.
    boxes, areas = [[0, 0, 40, 40], [50, 50, 70, 70]], torch.tensor([800.0, 9999.0], dtype=torch.float64)
    result = evaluate([sample(0, boxes, [0, 0], box_areas=areas)], [detections(boxes[:1], [0], [0.9])])
    assert result["APs"] == pytest.approx(1.0) and result["APl"] == 0.0 and math.isnan(result["APm"])


def test_unlabelled_images_are_skipped_and_repeated_ones_count_once():
    labelled = sample(0, [[0, 0, 20, 20]], [0])
    unlabelled = {key: value for key, value in sample(1, [], []).items() if not key.startswith("box")}
    right, wrong = detections([[0, 0, 20, 20]], [0], [0.5]), detections([[50, 50, 90, 90]], [0], [0.9])
    assert evaluate([labelled, unlabelled, labelled], [right, wrong, wrong])["AP"] == pytest.approx(1.0)


def test_detections_in_an_image_without_objects_are_false_positives():
    inputs = [sample(0, [[0, 0, 20, 20]], [0]), sample(1, [], [])]
    right, wrong = detections([[0, 0, 20, 20]], [0], [0.5]), detections([[50, 50, 90, 90]], [0], [0.9])
    assert evaluate(inputs, [right, wrong])["AP"] == pytest.approx(0.5)


def test_nothing_found_gives_zero():
    result = evaluate([sample(0, [[0, 0, 20, 20]], [2])], [detections([], [], [])])
    assert result["AP"] == result["AP50"] == result["APs"] == result["AP-c"] == 0.0
    assert math.isnan(result["APm"]) and "AP-a" not in result


CROWD_ALONE = sample(0, [[0, 0, 20, 20]], [2], box_is_crowd=torch.tensor([True]))


@pytest.mark.parametrize("inputs", [[], [{"image_id": 4}], [sample(0, [], [])], [CROWD_ALONE]])
def test_nothing_to_find_gives_nan_and_a_warning(inputs, caplog):
    warn_unlabelled.cache_clear()
    for _ in range(2):
        result = evaluate(inputs, [detections([[0, 0, 9, 9]], [0], [0.5])] * len(inputs))
        assert list(result) == list(KEYS) and all(map(math.isnan, result.values()))
    assert [record.message.split(":")[0] for record in caplog.records] == ["detection"]


def random_case(images=12, objects=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = [], []
    for image_id in range(images):
        corners = torch.rand(objects, 2, generator=generator) * 300
        boxes = torch.cat([corners, corners + 4 + 150 * torch.rand(objects, 2, generator=generator)], 1)
        labels = torch.randint(0, 3, (objects,), generator=generator)
        crowd = torch.rand(objects, generator=generator) < 0.2
        inputs.append(sample(image_id, boxes.tolist(), labels.tolist(), (460, 460), box_is_crowd=crowd))
        noisy = boxes.repeat(2, 1) + 8 * torch.randn(2 * objects, 4, generator=generator)
        noisy[:, 2:] = torch.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        flips = torch.rand(2 * objects, generator=generator) < 0.2
        guesses = torch.where(flips, (labels.repeat(2) + 1) % 3, labels.repeat(2))
        scores = torch.rand(2 * objects, generator=generator)
        outputs.append({"boxes": noisy, "labels": guesses, "scores": scores})
    return inputs, outputs


def test_equals_pycocotools_used_directly(capsys):
    inputs, outputs = random_case()
    result = evaluate(inputs, outputs)
    assert capsys.readouterr().out == ""

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations = [
        {
            "image_id": each["image_id"],
            "category_id": label + 1,
            "bbox": xywh(box),
            "area": xywh(box)[2] * xywh(box)[3],
            "iscrowd": int(crowd),
        }
        for each in inputs
        for box, label, crowd in zip(
            each["boxes"].tolist(), each["box_labels"].tolist(), each["box_is_crowd"].tolist(), strict=True
        )
    ]
    found = [
        {"image_id": each["image_id"], "category_id": label + 1, "bbox": xywh(box), "score": score}
        for each, output in zip(inputs, outputs, strict=True)
        for box, label, score in zip(
            output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": each["image_id"]} for each in inputs],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [{**annotation, "id": i + 1} for i, annotation in enumerate(annotations)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        direct = COCOeval(coco, coco.loadRes(found), "bbox")
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    assert [result[key] for key in KEYS] == pytest.approx(direct.stats[:6].tolist(), abs=1e-9)
    assert 0.05 < result["AP"] < 0.95
    assert sum(result[f"AP-{name}"] for name in NAMES) / 3 == pytest.approx(result["AP"])
