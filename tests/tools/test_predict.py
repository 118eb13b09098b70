"""Which images predict reads, and what it never overwrites; the models' numbers are in test_train_models."""

import json
import os

import cv2
import numpy as np
import pytest
import torch
from d2go_fbnetv5.tools import predict, prediction_files

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.models import SearchedModel


class Stub(torch.nn.Module):
    """Sees the class 1 in every pixel, or one box, or the first of two classes."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, batch):
        sizes = [sample["image"].shape[-2:] for sample in batch]
        if self.task == "seg":
            return [{"sem_seg": torch.ones(*size, dtype=torch.int64)} for size in sizes]
        if self.task == "cls":
            return [{"class_scores": torch.tensor([0.75, 0.25])} for _ in sizes]
        box = {"scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
        return [{"boxes": torch.tensor([[0.0, 0.0, w, h]]), **box} for h, w in sizes]


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """Runs predict with a stub for the model; returns the status."""
    monkeypatch.chdir(tmp_path)

    def run(*images, output="shown", task="seg", size=None):
        stub = Predictor(Stub(task), task, ("sky", "sea"), EvalTransform(size))
        monkeypatch.setattr(predict, "open_model", lambda args: stub)
        return predict.main([*map(str, images), "--run", "run", "--output", str(output)])

    return run


def picture(path, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 99, np.uint8))
    return path


def entries(folder):
    def constant(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "predictions.json").read_text(), parse_constant=constant)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_searched_and_keeps_its_shape(shown, tmp_path, capsys):
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "sub/a.png", "sub/deep/c.png"):
        picture(folder / name)
    for name in (".hidden.png", "._a.png", ".cache/d.png", "sub/.ipynb_checkpoints/a.png"):
        picture(folder / name)
    (folder / "notes.txt").write_text("none")
    (folder / "sub" / "Thumbs.db").write_text("none")
    assert shown(folder) == 0
    assert capsys.readouterr().err == f"predict: 2 files are no images, such as {folder / 'notes.txt'}\n"
    found = entries(tmp_path / "shown")
    names = ["a.JPG", "b.png", "sub/a.png", "sub/deep/c.png"]
    assert [entry["image"] for entry in found] == [str(folder / name) for name in names]
    assert [entry["picture_file_name"] for entry in found] == [
        "a.png",
        "b.png",
        "sub/a.png",
        "sub/deep/c.png",
    ]
    for entry in found:
        assert cv2.imread(str(tmp_path / "shown" / entry["picture_file_name"])).shape == (6, 8, 3)
        labels = cv2.imread(str(tmp_path / "shown" / entry["sem_seg_file_name"]), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (6, 8) and (labels == 1).all()


def test_a_folder_without_images_is_one_sentence(shown, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "empty" / ".hidden.png")
    assert shown("empty") == 2
    assert capsys.readouterr().err == "predict: folder empty has no images\n"
    assert not (tmp_path / "shown").exists()


@pytest.mark.parametrize("bad", ["missing.png", "broken.png", "text.jpg", "empty.png"])
def test_one_bad_image_among_good_ones_is_told_and_the_others_are_there(shown, tmp_path, capsys, bad):
    good = [picture(tmp_path / name) for name in ("a.png", "z.png")]
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:50])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    assert shown(good[0], bad, good[1]) == 2
    error = capsys.readouterr().err
    assert bad in error and error.startswith("predict: ") and error.count("\n") == 1
    assert [entry["image"] for entry in entries(tmp_path / "shown")] == list(map(str, good))
    assert shown(bad, output="none") == 2
    assert not (tmp_path / "none").exists()


def test_names_never_collide(shown, tmp_path):
    images = ["a.png", "a.jpg", "a_sem_seg.png", "A.png", "other/a.png", "a_2.png", "a.b.png", "é.png"]
    images = [picture(tmp_path / "in" / name) for name in images]
    images.append(picture(tmp_path / "in" / "other" / "e\u0301.png"))  # the same letter, written otherwise
    assert shown(*images) == 0
    found = entries(tmp_path / "shown")
    files = [entry[key] for entry in found for key in ("picture_file_name", "sem_seg_file_name")]
    assert len({file.casefold() for file in files}) == 2 * len(images)
    assert found[0]["picture_file_name"] == "a.png" and found[1]["picture_file_name"] == "a_2.png"
    assert found[0]["sem_seg_file_name"] == "a_sem_seg.png" and found[6]["picture_file_name"] == "a.b.png"
    for entry in found:
        assert (
            cv2.imread(str(tmp_path / "shown" / entry["sem_seg_file_name"]), cv2.IMREAD_UNCHANGED).ndim == 2
        )
        assert (
            cv2.imread(str(tmp_path / "shown" / entry["picture_file_name"]), cv2.IMREAD_UNCHANGED).ndim == 3
        )


def test_an_image_that_is_named_twice_is_predicted_once(shown, tmp_path):
    image = picture(tmp_path / "in" / "a.png")
    assert shown(image, "in", "in/../in/a.png", task="cls") == 0
    assert [entry["image"] for entry in entries(tmp_path / "shown")] == [str(image)]


def same(image, target):
    picture(image)
    target.parent.mkdir(exist_ok=True)


def symlink(image, target):
    same(image, target)
    target.symlink_to(image)


def hardlink(image, target):
    same(image, target)
    os.link(image, target)


def foreign(image, target):
    same(image, target)
    target.write_bytes(image.read_bytes())


def folder(image, target):
    same(image, target)
    target.mkdir()


def dangling(image, target):
    same(image, target)
    target.symlink_to("nowhere")


@pytest.mark.parametrize("put", [symlink, hardlink, foreign, folder, dangling])
@pytest.mark.parametrize("name", ["a.png", "a_sem_seg.png", "predictions.json"])
def test_what_predict_has_not_written_is_never_overwritten(shown, tmp_path, capsys, put, name):
    image, target = tmp_path / "in" / "a.png", tmp_path / "shown" / name
    put(image, target)
    before = contents(tmp_path)
    assert shown(image) == 2
    error = capsys.readouterr().err
    assert str(target.relative_to(tmp_path)) in error and "choose another --output" in error
    assert contents(tmp_path) == before


def test_an_image_is_never_overwritten_even_where_predict_has_written_it(shown, tmp_path, capsys):
    image = picture(tmp_path / "a.png")
    before = contents(tmp_path)
    assert shown(image, output=".") == 2
    assert shown("a.png", output=tmp_path) == 2
    assert contents(tmp_path) == before
    assert shown(image) == 0
    drawn = contents(tmp_path)
    assert shown("shown/a.png") == 2
    assert "is one of the images" in capsys.readouterr().err
    assert contents(tmp_path) == drawn


def test_it_runs_again_into_its_own_folder_also_within_the_images_folder(shown, tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    for output in ("shown", "in/predictions", "in/predictions"):
        for _ in range(2):
            assert shown("in", output=output) == 0
            assert [entry["image"] for entry in entries(tmp_path / output)] == ["in/a.png", "in/b.png"]
    # It was killed before predictions.json was there.
    (tmp_path / "shown" / "predictions.json").unlink()
    assert shown("in") == 0
    # What has been edited since is the user's.
    picture(tmp_path / "shown" / "a_sem_seg.png")
    assert shown("in") == 2


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 1), (2, 2)])
def test_tiny_and_thin_images_are_drawn(shown, tmp_path, task, size):
    assert shown(picture(tmp_path / "a.png", size), task=task) == 0
    assert cv2.imread(str(tmp_path / "shown" / "a.png")).shape == (*size, 3)


@pytest.mark.parametrize(("short", "bound"), [(64, None), (224, 320)])
def test_an_image_that_cannot_be_resized_is_one_sentence(short, bound):
    predictor = Predictor(Stub("cls"), "cls", ("a", "b"), EvalTransform(short, max_size=bound))
    with pytest.raises(ValueError, match="an image of 1x20000 pixels would be resized to"):
        predictor.sample(torch.zeros(3, 1, 20000, dtype=torch.uint8))
    image = torch.zeros(3, 10, 12, dtype=torch.uint8)
    assert min(predictor.sample(image)["image"].shape[-2:]) == short


def test_an_output_that_is_no_number_is_refused():
    class Broken(SearchedModel):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, batch):
            return [{"class_scores": torch.tensor([0.5, float("nan")])} for _ in batch]

    predictor = Predictor(Broken(), "cls", ("a", "b"), EvalTransform(None))
    with pytest.raises(ValueError, match="class_scores are not finite numbers"):
        predictor.predict([torch.zeros(3, 8, 8, dtype=torch.uint8)])


def test_a_mark_does_not_change_a_picture(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    prediction_files.write_png(tmp_path / "new" / "map.png", pixels)
    assert (cv2.imread(str(tmp_path / "new" / "map.png"), cv2.IMREAD_UNCHANGED) == pixels).all()
