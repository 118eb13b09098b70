import json
import pickle

import cv2
import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import DigitScenes, MultitaskDataset, build_eval_loader, write_multitask
from d2go_fbnetv5.data.index_arrays import NO_LABEL, BoxArrays, MultitaskIndex, Strings
from d2go_fbnetv5.data.index_files import open_index, save_index
from d2go_fbnetv5.tasks.base import DatasetInfo

NAMES = ["a.jpg", "", "två ord.png", "sub/x\udcff.jpg", "犬"]


def small_index():
    """Two images of 20x10 (width x height), the first with a class, two boxes and a map."""
    return MultitaskIndex(
        DatasetInfo(("x", "y"), ("cat", "dog"), ("s", "t")),
        ids=np.array([7, 3]),
        sizes=np.array([[10, 20], [10, 20]]),
        file_names=Strings.of(["a.png", "b ü.png"]),
        class_labels=np.array([1, NO_LABEL]),
        map_names=Strings.of(["m.png", ""]),
        boxes=BoxArrays(
            np.array([0, 2, 2]),
            np.array([[1, 2, 4, 6], [0, 0, 20, 10]], dtype=np.float32),
            np.array([1, 0]),
            scores=np.array([0.5, 1.0], dtype=np.float32),
            areas=np.array([5.5, 200]),
        ),
        has_boxes=np.array([True, False]),
    )


@pytest.fixture
def saved(tmp_path):
    for name in ("a.png", "b ü.png"):
        cv2.imwrite(str(tmp_path / name), np.full((10, 20, 3), (10, 20, 30), np.uint8))
    cv2.imwrite(str(tmp_path / "m.png"), np.full((10, 20), 1, np.uint8))
    save_index(small_index(), tmp_path / "set")
    return tmp_path / "set"


def test_strings_keep_every_name():
    strings = Strings.of(NAMES)
    assert list(strings) == NAMES and len(strings) == 5 and strings[-1] == "犬" and strings[1:3] == NAMES[1:3]
    assert strings.lengths().tolist() == [5, 0, 12, 10, 3]
    assert list(Strings.joined([strings, Strings.of([]), Strings.of(["z"])])) == [*NAMES, "z"]
    with pytest.raises(IndexError):
        strings[5]


def test_reads_all_labels(saved):
    dataset = MultitaskDataset(saved)
    first, second = dataset[0], dataset[-1]
    assert first["image"][:, 0, 0].tolist() == [30, 20, 10] and first["class_label"] == 1
    assert first["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 20, 10]] and first["boxes"].dtype == torch.float32
    assert first["box_labels"].tolist() == [1, 0] and first["box_labels"].dtype == torch.int64
    assert first["sem_seg"].unique().tolist() == [1] and first["image_id"] == 7
    assert set(second) == {"image", "image_id", "height", "width"}
    assert dataset.sizes.tolist() == [[10, 20], [10, 20]]
    assert dataset.image_path(1).name == "b ü.png"
    assert dataset.index.boxes.scores.tolist() == [0.5, 1.0]
    assert first["box_areas"].tolist() == [5.5, 200] and first["box_areas"].dtype == torch.float64


def test_an_index_of_before_areas_were_kept_opens(saved):
    (saved / "box_areas.npy").unlink()
    assert "box_areas" not in MultitaskDataset(saved)[0]


def test_both_forms_hold_the_same(tmp_path):
    path = write_multitask(DigitScenes(size=64, num_images=6), tmp_path / "set")
    written = MultitaskDataset(path)
    save_index(written.index, tmp_path / "set" / "arrays")
    arrays = MultitaskDataset(tmp_path / "set" / "arrays")
    assert arrays.info == written.info
    for index in range(6):
        expected, found = written[index], arrays[index]
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[key])), key


def test_the_same_index_gives_the_same_bytes(saved, tmp_path):
    save_index(small_index(), tmp_path / "again")
    files = sorted(path.name for path in saved.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    save_index(small_index(), saved)  # replaces
    assert files == sorted(path.name for path in saved.iterdir())
    assert not list(tmp_path.glob("*.tmp"))


def test_any_task_may_be_missing(tmp_path):
    index = MultitaskIndex(DatasetInfo(), np.array([0]), np.array([[10, 20]]), Strings.of(["a.png"]))
    save_index(index, tmp_path / "set")
    found = open_index(tmp_path / "set")
    assert found.info == DatasetInfo() and found.boxes is None and found.class_labels is None
    index.info = DatasetInfo(("x",), ("cat",), ("s",))
    save_index(index, tmp_path / "set")
    found = open_index(tmp_path / "set")
    assert found.has_boxes.tolist() == [False] and found.class_labels.tolist() == [NO_LABEL]
    assert list(found.map_names) == [""]


def test_nothing_is_sent_to_another_process(saved):
    dataset = MultitaskDataset(saved)
    message = pickle.dumps(dataset)
    assert len(message) < 2000
    assert pickle.loads(message)[0]["boxes"].tolist() == dataset[0]["boxes"].tolist()


def test_workers_read_what_the_process_reads(saved):
    batches = build_eval_loader(MultitaskDataset(saved), None, 1, num_workers=2)
    assert [batch[0]["image_id"] for batch in batches] == [7, 3] and len(batches) == 2


def replaced(name, values):
    return lambda folder: np.save(folder / f"{name}.npy", np.array(values))


def header(**values):
    def change(folder):
        path = folder / "index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


NAN = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            replaced("class_labels", np.int32([2, 0])),
            r"image 7 \(a.png\): class_label is 2, allowed are 0 to 1",
        ),
        (replaced("class_labels", np.int32([0, -1])), r"image 3 \(b ü.png\): class_label is -1"),
        (replaced("sizes", np.int32([[10, 20], [0, 20]])), "image 3 .*height is 0 and width 20"),
        (replaced("ids", [7, 7]), "the same id occurs more than once"),
        (replaced("box_labels", np.uint16([1, 2])), "image 7 .*a box has the label 2, allowed are 0 to 1"),
        (replaced("box_scores", np.float32([0.5, NAN])), "a box has the score nan, allowed are 0 to 1"),
        (replaced("box_areas", [NAN, 1]), "image 7 .*a box has the area nan, it must be at least 0"),
        (replaced("box_areas", [5, -1.0]), "a box has the area -1.0"),
        (
            replaced("boxes", np.float32([[1, 2, 4, 6], [0, 0, 21, 10]])),
            r"box \[0.0, 0.0, 21.0, 10.0\] .*20x10",
        ),
        (replaced("boxes", np.float32([[-1, 2, 4, 6], [0, 0, 2, 1]])), "does not have an area inside"),
        (replaced("boxes", np.float32([[4, 2, 4, 6], [0, 0, 2, 1]])), "does not have an area inside"),
        (replaced("boxes", np.float32([[NAN, 2, 4, 6], [0, 0, 2, 1]])), "does not have an area inside"),
        (
            replaced("boxes", np.float32([[1, 2, 4, 6]])),
            r"boxes.npy .* shape \(1, 4\), expected float32 and \(2, 4\)",
        ),
        (replaced("boxes", np.zeros((2, 4))), "boxes.npy is an array of float64"),
        (
            replaced("box_starts", np.uint32([0, 1, 1])),
            "box_starts.npy: must go from 0 to the number of boxes, 2",
        ),
        (replaced("box_starts", np.uint32([0, 3, 2])), "and not decrease"),
        (replaced("file_name_ends", [9, 5]), "must not decrease"),
        (replaced("ids", [object(), 1]), "ids.npy is broken"),
        (lambda folder: (folder / "boxes.npy").write_bytes(b"half"), "boxes.npy is broken or cut short"),
        (lambda folder: (folder / "ids.npy").unlink(), "ids.npy does not exist"),
        (lambda folder: (folder / "index.json").unlink(), "index.json does not exist"),
        (header(version=2), "version is 2, this release reads 1"),
        (header(num_boxes="2"), "num_boxes is '2', it must be an integer"),
        (header(class_names="xy"), "'class_names' must be a list of strings"),
        (header(sem_seg_names=["n"] * 256), "256 names, allowed are at most 255"),
    ],
)
def test_bad_files(saved, damage, message):
    damage(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        MultitaskDataset(saved)


def test_a_file_cut_short(saved):
    data = (saved / "boxes.npy").read_bytes()
    (saved / "boxes.npy").write_bytes(data[:-4])
    with pytest.raises(ValueError, match="boxes.npy is broken or cut short"):
        MultitaskDataset(saved)


def test_no_pickle_is_read(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    np.save(saved / "ids.npy", np.array([Bomb(), Bomb()]), allow_pickle=True)
    with pytest.raises(ValueError, match="ids.npy is broken"):
        open_index(saved)
    assert not (tmp_path / "exploded").exists()
