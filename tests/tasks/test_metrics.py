import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.tasks.metrics import SemSegMetrics, TopKAccuracy


def test_top1_and_top5_by_hand():
    scores = torch.tensor([0.05, 0.1, 0.3, 0.2, 0.15, 0.12, 0.08])
    labels = [2, 3, 5, 6]  # ranks 0, 1, 3, 5
    metric = TopKAccuracy()
    inputs = [{"image_id": i, "class_label": label} for i, label in enumerate(labels)]
    metric.process(inputs, [{"class_scores": scores}] * 4)
    assert metric.evaluate() == {"top1": 0.25, "top5": 0.75}


def test_topk_equals_torch_topk_on_random_scores():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 20, generator=generator)
    labels = torch.randint(0, 20, (200,), generator=generator)
    metric = TopKAccuracy()
    metric.process(
        [{"image_id": i, "class_label": int(label)} for i, label in enumerate(labels)],
        [{"class_scores": row} for row in scores],
    )
    for k in (1, 5):
        expected = (scores.topk(k, 1).indices == labels[:, None]).any(1).float().mean().item()
        assert metric.evaluate()[f"top{k}"] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.1, float("nan")])
def test_a_constant_output_earns_nothing(value):
    metric = TopKAccuracy(topk=(1,))
    inputs = [{"image_id": i, "class_label": i} for i in range(10)]
    metric.process(inputs, [{"class_scores": torch.full((10,), value)}] * 10)
    assert metric.evaluate() == {"top1": 0.0}


def test_unlabelled_and_repeated_images_do_not_count():
    metric = TopKAccuracy(topk=(1,))
    right, wrong = {"class_scores": torch.tensor([0.9, 0.1])}, {"class_scores": torch.tensor([0.1, 0.9])}
    metric.process([{"image_id": 0, "class_label": 0}, {"image_id": 1}], [right, wrong])
    metric.process([{"image_id": 0, "class_label": 0}], [wrong])
    assert metric.evaluate() == {"top1": 1.0}
    metric.reset()
    metric.process([{"image_id": 1}], [wrong])
    assert math.isnan(metric.evaluate()["top1"])


def test_of_three_classes_there_is_no_top5():
    metric = TopKAccuracy()
    metric.process([{"image_id": 0, "class_label": 1}], [{"class_scores": torch.tensor([0.5, 0.3, 0.2])}])
    assert metric.evaluate() == {"top1": 0.0}


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=f"class_label of image 7 is {label}; allowed: 0..2"):
        TopKAccuracy().process([{"image_id": 7, "class_label": label}], [{"class_scores": torch.ones(3)}])


def seg_sample(image_id, rows):
    return {"image_id": image_id, "sem_seg": torch.tensor(rows)}


def test_iou_by_hand():
    metric = SemSegMetrics(("a", "b", "c", "d"))
    truth = seg_sample(0, [[0, 0, 1], [1, 1, 255]])
    prediction = {"sem_seg": torch.tensor([[0, 1, 1], [1, 2, 3]])}
    metric.process([truth], [prediction])
    # a: 1 of 2 pixels; b: 2 hits, union 4; c is predicted once but absent from the truth; d only where it is ignored.
    result = metric.evaluate()
    assert result == pytest.approx({"mIoU": 0.5, "pixel_accuracy": 0.6, "IoU-a": 0.5, "IoU-b": 0.5})
    assert metric.confusion().tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_confusion_equals_a_direct_count():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 6, (5, 7, 9), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    prediction = torch.randint(0, 6, (5, 7, 9), generator=generator)
    metric = SemSegMetrics(tuple("abcdef"))
    metric.process(
        [{"image_id": i, "sem_seg": t} for i, t in enumerate(truth)], [{"sem_seg": p} for p in prediction]
    )
    direct = torch.tensor(
        [[int(((truth == t) & (prediction == p)).sum()) for p in range(6)] for t in range(6)]
    )
    assert torch.equal(metric.confusion(), direct)
    ious = [direct[c, c] / (direct[c].sum() + direct[:, c].sum() - direct[c, c]) for c in range(6)]
    assert metric.evaluate()["mIoU"] == pytest.approx(float(sum(ious)) / 6)


def test_an_image_without_a_labelled_pixel_does_not_count_and_a_set_of_them_gives_nan():
    metric = SemSegMetrics(("a", "b"))
    assert all(map(math.isnan, metric.evaluate().values()))
    zeros = {"sem_seg": torch.zeros(1, 2, dtype=torch.long)}
    metric.process([seg_sample(0, [[255, 255]]), {"image_id": 1}], [zeros] * 2)
    assert list(metric.evaluate()) == ["mIoU", "pixel_accuracy"]
    assert all(map(math.isnan, metric.evaluate().values()))
    metric.process([seg_sample(2, [[0, 1]])], [zeros])
    assert metric.evaluate() == {"mIoU": 0.25, "pixel_accuracy": 0.5, "IoU-a": 0.5, "IoU-b": 0.0}


def test_bad_maps_are_named():
    metric = SemSegMetrics(("a", "b"))
    with pytest.raises(
        ValueError, match=r"sem_seg of image 3 has the classes \[2, 9\]; allowed: 0..1 and 255"
    ):
        metric.process([seg_sample(3, [[0, 2, 9]])], [{"sem_seg": torch.zeros(1, 3, dtype=torch.long)}])
    with pytest.raises(ValueError, match=r"sem_seg of image 4 is \(1, 1\), but its prediction \(1, 3\)"):
        metric.process([seg_sample(4, [[0]])], [{"sem_seg": torch.zeros(1, 3, dtype=torch.long)}])
    with pytest.raises(ValueError, match=r"the prediction of sem_seg of image 5 has the classes \[2\]"):
        metric.process([seg_sample(5, [[0, 1]])], [{"sem_seg": torch.tensor([[0, 2]])}])


def test_two_ranks_with_a_remainder_and_a_repeated_image_equal_one(tmp_path):
    script = Path(__file__).with_name("evaluate_on_ranks.py")
    command = [sys.executable, str(script), str(tmp_path / "store")]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0, output
        assert "equal: TopKAccuracy SemSegMetrics AveragePrecision DepthMetrics" in output
