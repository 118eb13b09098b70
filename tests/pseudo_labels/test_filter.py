import numpy as np
import pytest
import torch

from d2go_fbnetv5.pseudo_labels.filter import (
    SCORE_BINS,
    ClassMap,
    OutputError,
    filter_boxes,
    filter_class,
    filter_map,
    map_label_map,
)

ABC = ClassMap("DET", ["a", "b", "c"])


def boxes(scores, labels=None, corners=None):
    count = len(scores)
    return {
        "boxes": torch.tensor(corners or [[1.0, 2, 3, 4]] * count),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels or [0] * count),
    }


def test_a_box_is_kept_at_the_threshold_and_dropped_below():
    found = filter_boxes(boxes([0.5, 0.4999, 1.0, 0.0, 0.50001]), (10, 20), ABC, 0.5)
    np.testing.assert_allclose(found.scores, [0.5, 1.0, 0.50001])
    assert found.counts == {
        "given": 5,
        "dropped_class": 0,
        "below_threshold": 2,
        "without_area": 0,
        "kept": 3,
    }
    assert found.histogram.shape == (3, SCORE_BINS) and found.histogram.sum() == 5
    assert found.histogram[0, [0, 9, 10, 19]].tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type(dtype):
    below = torch.nextafter(torch.tensor(0.5, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    output = boxes([0.5, 0.5])
    output["scores"] = torch.stack([torch.tensor(0.5, dtype=dtype), below])
    assert len(filter_boxes(output, (10, 20), ABC, 0.5).boxes) == 1


def test_boxes_end_at_the_images_border():
    corners = [[-5.0, -5, 4, 4], [18, 1, 29, 3], [-9, 0, -1, 3], [3, 3, 3, 9], [9, 9, 2, 2]]
    found = filter_boxes(boxes([1.0] * 5, corners=corners), (10, 20), ABC, 0.5)
    assert found.boxes.tolist() == [[0, 0, 4, 4], [18, 1, 20, 3]] and found.boxes.dtype == np.float32
    assert found.counts["without_area"] == 3 and found.counts["kept"] == 2


def test_no_boxes_are_an_answer():
    empty = {"boxes": torch.zeros(0, 4), "scores": [], "labels": []}
    found = filter_boxes(empty, (10, 20), ABC, 0.5)
    assert found.boxes.shape == (0, 4) and found.counts["given"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[1, 2, float("nan"), 4]])}, "boxes has values that are not finite"),
        ({"scores": torch.tensor([float("inf")])}, "scores has values that are not finite"),
        ({"scores": torch.tensor([1.1])}, "scores has values from 1.1 to 1.1, allowed are 0 to 1"),
        ({"scores": torch.tensor([-0.1])}, "scores has values from -0.1"),
        ({"labels": torch.tensor([3])}, "labels has values from 3 to 3, allowed are 0 to 2"),
        ({"labels": torch.tensor([-1])}, "labels has values from -1"),
        ({"labels": torch.tensor([1.0])}, "labels has the type torch.float32, expected integers"),
        ({"labels": torch.tensor([1, 1])}, "1 boxes, 1 scores and 2 labels"),
        ({"boxes": torch.zeros(1, 5)}, r"boxes has the shape \(1, 5\), expected any x 4"),
        ({"scores": None}, "the teacher gives no scores"),
    ],
)
def test_wrong_boxes(change, message):
    output = {key: value for key, value in {**boxes([0.9]), **change}.items() if value is not None}
    with pytest.raises(OutputError, match=message):
        filter_boxes(output, (10, 20), ABC, 0.5)


def test_classes_are_dropped_merged_renamed_and_ordered():
    found = ["cat", "dog", "car", "truck", "cat"]
    assert ClassMap("DET", found).names == ("cat", "dog", "car", "truck")
    assert ClassMap("DET", found).labels.tolist() == [0, 1, 2, 3, 0]
    merged = ClassMap("DET", found, {"dog": "", "truck": "vehicle", "car": "vehicle"})
    assert merged.names == ("cat", "vehicle") and merged.labels.tolist() == [0, -1, 1, 1, 0]
    chosen = ClassMap("DET", found, {"truck": "lorry"}, ["lorry", "cat"])
    assert chosen.names == ("lorry", "cat") and chosen.labels.tolist() == [1, -1, -1, 0, 1]
    kept = filter_boxes(boxes([0.9, 0.9, 0.3], [3, 1, 0]), (10, 20), chosen, 0.5)
    assert kept.labels.tolist() == [0] and kept.counts["dropped_class"] == 1
    assert kept.histogram.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remap": {"bird": "x"}}, "DET.REMAP has 'bird', allowed are the source's classes: cat, dog"),
        ({"names": ["cat", "bird"]}, "DET.NAMES has 'bird', which no class of the teacher becomes: cat, dog"),
        ({"names": ["cat", "cat"]}, "DET.NAMES has a name twice"),
        ({"remap": {"cat": "", "dog": ""}}, "DET: no class is left"),
    ],
)
def test_wrong_classes(options, message):
    with pytest.raises(ValueError, match=message):
        ClassMap("DET", ["cat", "dog"], **options)


def test_a_pixel_is_kept_at_the_threshold_and_ignored_below():
    probabilities = torch.tensor([[[0.5, 0.4999, 0.2]], [[0.3, 0.3, 0.7]], [[0.2, 0.2001, 0.1]]])
    labels, histogram = filter_map({"probabilities": probabilities}, (1, 3), ABC, 0.5)
    assert labels.tolist() == [[0, 255, 1]] and labels.dtype == np.uint8
    assert histogram.nonzero()[0].tolist() == [9, 10, 14]


def test_labels_with_scores_mean_the_same():
    output = {"sem_seg": torch.tensor([[0, 2, 1]]), "sem_seg_scores": torch.tensor([[0.5, 0.4999, 1.0]])}
    labels, histogram = filter_map(output, (1, 3), ABC, 0.5)
    assert labels.tolist() == [[0, 255, 1]] and histogram.nonzero()[0].tolist() == [9, 10, 19]


def test_probabilities_of_merged_classes_are_added():
    probabilities = torch.tensor([0.3, 0.3, 0.4]).reshape(3, 1, 1)
    merged = ClassMap("SEG", ["cat", "dog", "sky"], {"cat": "animal", "dog": "animal"})
    assert filter_map({"probabilities": probabilities}, (1, 1), merged, 0.5)[0].tolist() == [[0]]
    assert filter_map({"probabilities": probabilities}, (1, 1), ABC, 0.5)[0].tolist() == [[255]]
    # What is most likely a dropped class is no other one.
    dropped = ClassMap("SEG", ["cat", "dog", "sky"], {"sky": ""})
    assert filter_map({"probabilities": probabilities}, (1, 1), dropped, 0.3)[0].tolist() == [[255]]
    both = ClassMap("SEG", ["cat", "dog", "sky"], {"cat": "animal", "dog": "animal", "sky": ""})
    assert filter_map({"probabilities": probabilities}, (1, 1), both, 0.5)[0].tolist() == [[0]]


def test_maps_of_another_size_are_resized_bilinearly(monkeypatch):
    small = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    ab = ClassMap("SEG", ["a", "b"])
    # At four columns: 0.9, 0.7, 0.3, 0.1 of a.
    labels, histogram = filter_map({"probabilities": small}, (2, 4), ab, 0.8)
    assert labels.tolist() == [[0, 255, 255, 1]] * 2
    torch.manual_seed(0)
    many = torch.rand(7, 5, 6).softmax(0)
    classes = ClassMap("SEG", list("abcdefg"))
    whole = filter_map({"probabilities": many}, (16, 20), classes, 0.17)
    monkeypatch.setattr("d2go_fbnetv5.pseudo_labels.filter._MAX_RESIZED", 2 * 16 * 20)
    parts = filter_map({"probabilities": many}, (16, 20), classes, 0.17)
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all() and len(np.unique(whole[0])) > 3


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"probabilities": torch.rand(4, 2, 2)},
            r"probabilities has the shape \(4, 2, 2\), expected 3 x any x any",
        ),
        (
            {"probabilities": torch.full((3, 2, 2), float("nan"))},
            "probabilities has values that are not finite",
        ),
        ({"probabilities": torch.full((3, 2, 2), 3.0)}, "probabilities has values from 3 to 3"),
        ({}, "the teacher gives no sem_seg"),
        ({"sem_seg": torch.zeros(2, 3).long()}, r"sem_seg has the shape \(2, 3\), expected 2 x 2"),
        ({"sem_seg": torch.full((2, 2), 3)}, "sem_seg has values from 3 to 3, allowed are 0 to 2"),
        ({"sem_seg": torch.zeros(2, 2).long()}, "the teacher gives no sem_seg_scores"),
    ],
)
def test_wrong_maps(output, message):
    with pytest.raises(OutputError, match=message):
        filter_map(output, (2, 2), ABC, 0.5)


def test_the_best_class_counts():
    assert filter_class({"class_scores": torch.tensor([0.2, 0.5, 0.3])}, ABC, 0.5)[0] == 1
    label, histogram = filter_class({"class_scores": torch.tensor([0.2, 0.4999, 0.3001])}, ABC, 0.5)
    assert label is None and histogram.nonzero()[0].tolist() == [9]
    merged = ClassMap("CLS", ["cat", "dog", "sky"], {"cat": "animal", "dog": "animal"})
    assert filter_class({"class_scores": torch.tensor([0.3, 0.3, 0.4])}, merged, 0.5)[0] == 0
    with pytest.raises(OutputError, match=r"class_scores has the shape \(2,\), expected 3"):
        filter_class({"class_scores": torch.tensor([0.2, 0.8])}, ABC, 0.5)


def test_a_samples_own_map_is_remapped():
    merged = ClassMap("SEG", ["cat", "dog", "sky"], {"cat": "animal", "dog": "animal", "sky": ""})
    assert map_label_map(torch.tensor([[0, 1, 2, 255]]), merged).tolist() == [[0, 0, 255, 255]]


def wrong_values():
    """What teachers give in place of M scores, M = 1; each is no array of numbers from 0 to 1 of that shape."""
    quantized = torch.quantize_per_tensor(torch.tensor([0.5]), 0.1, 0, torch.quint8)
    cyclic = []
    cyclic.append(cyclic)
    return {
        "none": None,
        "text": "0.5",
        "dict": {"a": 0.5},
        "set": {0.5},
        "object": object(),
        "cyclic list": cyclic,
        "ragged list": [[0.5], [0.5, 0.5]],
        "list of texts": ["0.5"],
        "list of nothing": [None],
        "huge integer": [10**400],
        "array of objects": np.array([None]),
        "array of texts": np.array(["0.5"]),
        "array of times": np.array(["2020-01-01"], dtype="datetime64[D]"),
        "generator": (0.5 for _ in range(1)),
        "number": 0.5,
        "two": torch.tensor([0.5, 0.5]),
        "column": torch.tensor([[0.5]]),
        "nan": torch.tensor([float("nan")]),
        "infinite": torch.tensor([float("inf")]),
        "minus infinite": torch.tensor([float("-inf")], dtype=torch.float16),
        "logit": torch.tensor([3.2]),
        "negative": torch.tensor([-0.4]),
        "integer": torch.tensor([2**62]),
        "complex": torch.tensor([0.5 + 0j]),
        "sparse": torch.tensor([0.5]).to_sparse(),
        "compressed": torch.tensor([[0.5]]).to_sparse_csr(),
        "nested": torch.nested.nested_tensor([torch.tensor([0.5])]),
        "meta": torch.zeros(1, device="meta"),
        "quantized": quantized,
        "packed": torch.zeros(1, dtype=torch.uint8).view(torch.bits8),
        "float8 nan": torch.tensor([float("nan")]).to(torch.float8_e4m3fn),
        "millions": torch.zeros(1).expand(2**40),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: nested tensors are a prototype
def test_any_wrong_value_is_the_outputs_error():
    for key in ("scores", "labels", "boxes", "probabilities", "sem_seg", "sem_seg_scores", "class_scores"):
        for name, value in wrong_values().items():
            good = {**boxes([0.9]), "class_scores": [0.2, 0.3, 0.5]}
            good["probabilities"] = torch.full((3, 2, 2), 0.3)
            if key.startswith("sem_seg"):
                del good["probabilities"]
                good |= {"sem_seg": torch.zeros(2, 2).long(), "sem_seg_scores": torch.ones(2, 2)}
            output = {**good, key: value}
            run = filter_map if key in ("probabilities", "sem_seg", "sem_seg_scores") else filter_boxes
            arguments = (output, (2, 2), ABC, 0.5)
            if key == "class_scores":
                run, arguments = filter_class, (output, ABC, 0.5)
            with pytest.raises(OutputError, match=key):
                run(*arguments)
                pytest.fail(f"{key}: {name} was taken")


@pytest.mark.parametrize(
    "shape", [(3, 0, 0), (3, 0, 4), (2, 4, 4), (0, 4, 4), (3, 4), (1, 3, 4, 4), (3, 2**20, 2**20)]
)
def test_a_map_of_no_or_endless_pixels_is_the_outputs_error(shape):
    with pytest.raises(OutputError, match="probabilities has the shape"):
        filter_map({"probabilities": torch.full((1,), 0.3).expand(shape)}, (4, 4), ABC, 0.5)


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"]
)
def test_what_is_odd_and_right_is_taken(dtype):
    scores = torch.tensor([0.25, 0.5, 1.0]).to(getattr(torch, dtype)).requires_grad_(dtype != "float8_e5m2")
    assert filter_class({"class_scores": scores}, ABC, 0.5)[0] == 2
    given = torch.full((3, 2, 2), 0.25, requires_grad=True) + torch.tensor([0, 0.5, 0]).view(3, 1, 1)
    labels, _ = filter_map({"probabilities": given}, (4, 4), ABC, 0.5)
    assert (labels == 1).all()
    corners = np.array([[1, 2, 3, 4]], dtype=np.uint16)[::-1]
    found = filter_boxes(
        {"boxes": corners.copy(), "scores": (0.9,), "labels": np.uint64([2])}, (9, 9), ABC, 0.5
    )
    assert found.boxes.tolist() == [[1, 2, 3, 4]] and found.labels.tolist() == [2]
