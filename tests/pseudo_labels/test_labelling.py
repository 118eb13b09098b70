import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from planted_teachers import Faulty

from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.pseudo_labels import list_teachers
from d2go_fbnetv5.pseudo_labels.settings import load_settings

SCORES = [0.5, 0.4999, 0.9, 0.2, 1.0]


def truth(scenes, **changes):
    """Settings: all labels of the scenes by a teacher that knows them."""
    teacher = {
        "SOURCE": "teacher",
        "TEACHER": "planted_teachers:Truth",
        "OPTIONS": {"index": str(scenes), "scores": SCORES},
    }
    images = {"READER": "multitask", "index": str(scenes)}
    return {"IMAGES": images, "CLS": teacher, "DET": teacher, "SEG": teacher, "CHUNK_SIZE": 6, **changes}


def files(folder):
    """Every file's bytes, by its path in the folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if not file.is_dir()
    }


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("source", ["teacher", "dataset"])
def test_depth_is_a_label_that_a_teacher_gives_or_the_set_has(label, scenes, tmp_path, source):
    none, given = {"SOURCE": "none"}, truth(scenes)
    depth = given["CLS"] if source == "teacher" else {"SOURCE": "dataset"}
    assert label({**given, "CLS": none, "DET": none, "SEG": none, "DEPTH": depth}) == 0
    known, found = MultitaskDataset(scenes), MultitaskDataset(tmp_path / "out" / "index")
    assert found.info.depth_units == known.info.depth_units and not found.info.class_names
    for expected, sample in zip(known, found, strict=True):
        torch.testing.assert_close(sample["depth"], expected["depth"], rtol=1e-3, atol=0)
        assert "boxes" not in sample
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["DEPTH"] == {"images": 26, "problems": 0} and statistics["unlabelled"] == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["DEPTH"]["images"] == 26


def test_thresholds_do_what_the_paper_says(label, scenes, tmp_path):
    assert label(truth(scenes), "BATCH_SIZE", "4") == 0
    known, found = MultitaskDataset(scenes), MultitaskDataset(tmp_path / "out" / "index")
    # No teacher says what lies behind what.
    assert found.info == replace(known.info, depth_units=()) and len(found) == 26
    kept = torch.tensor(SCORES) >= 0.5
    for expected, sample in zip(known, found, strict=True):
        assert torch.equal(expected["image"], sample["image"])
        assert sample["class_label"] == expected["class_label"]  # its score is planted as 0.5
        rows = kept[torch.arange(len(expected["boxes"])) % 5]
        assert torch.equal(sample["boxes"], expected["boxes"][rows])
        assert torch.equal(sample["box_labels"], expected["box_labels"][rows])
        columns = kept[torch.arange(48) % 5]
        assert torch.equal(sample["sem_seg"][:, columns], expected["sem_seg"][:, columns])
        assert (sample["sem_seg"][:, ~columns] == 255).all()
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["SEG"]["ignored"] == 26 * 40 * int((~kept[torch.arange(48) % 5]).sum())
    assert statistics["DET"]["kept"] == len(found.index.boxes.boxes) == sum(statistics["DET"]["boxes"])
    assert sum(map(sum, statistics["DET"]["scores"])) == statistics["DET"]["given"]
    assert set(found.index.boxes.scores.tolist()) <= {0.5, np.float32(0.9), 1.0}
    assert skipped(tmp_path / "out") == []


def test_batches_chunks_and_workers_change_no_label(label, scenes, tmp_path):
    assert label(truth(scenes), "BATCH_SIZE", "5", output="a") == 0
    assert label(truth(scenes), "BATCH_SIZE", "1", "NUM_WORKERS", "2", output="b") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert label(truth(scenes, CHUNK_SIZE=100), output="c") == 0
    first, second = (files(tmp_path / name / "index") for name in "ac")
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"map_names.npy"}  # maps lie in the folder of their chunk


def test_labels_are_kept_for_some_tasks_and_given_for_others(label, scenes, tmp_path, capsys):
    teacher = truth(scenes)["DET"]
    remap = {str(digit): "odd" if digit % 2 else "" for digit in range(10)}
    settings = truth(
        scenes,
        CLS={"SOURCE": "none"},
        DET={"SOURCE": "dataset", "REMAP": remap},
        SEG={**teacher, "NAMES": ["7", "1"], "THRESHOLD": 0.0},
    )
    assert label(settings, "--preview", "4") == 0
    known, found = MultitaskDataset(scenes), MultitaskDataset(tmp_path / "out" / "index")
    assert found.info.class_names == () and found.info.box_names == ("odd",)
    assert found.info.sem_seg_names == ("7", "1") and found.index.boxes.scores is None
    numbers = known.info.sem_seg_names.index("7"), known.info.sem_seg_names.index("1")
    for expected, sample in zip(known, found, strict=True):
        assert "class_label" not in sample
        odd = expected["box_labels"] % 2 == 1
        assert torch.equal(sample["boxes"], expected["boxes"][odd]) and not sample["box_labels"].any()
        for new, old in enumerate(numbers):
            assert torch.equal(sample["sem_seg"] == new, expected["sem_seg"] == old)
    assert cv2.imread(str(tmp_path / "out" / "preview.png")) is not None
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 26
    assert "odd" in capsys.readouterr().out


def test_a_warning_about_the_index_is_shown_once(label, scenes, tmp_path, caplog):
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 48}],
        "categories": [{"id": 1, "name": "digit"}, {"id": 2, "name": "no digit"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
        ],
    }
    (tmp_path / "index.json").write_text(json.dumps(content))
    Image.new("RGB", (48, 40)).save(tmp_path / "1.png")
    images = {"READER": "coco", "image_root": str(tmp_path), "annotations_json": str(tmp_path / "index.json")}
    assert label({"IMAGES": images, "DET": {"SOURCE": "dataset"}}) == 0
    assert ["1 of 2 categories have no box" in message for message in caplog.messages].count(True) == 1


def test_two_shards_are_one_set(label, scenes, tmp_path, capsys):
    assert label(truth(scenes), output="one") == 0
    flags = ("--num-shards", "2", "--shard-index")
    assert label(truth(scenes), *flags, "1", output="two") == 0
    assert not (tmp_path / "two" / "index").exists()
    capsys.readouterr()
    assert label(truth(scenes), "--merge", output="two") == 2
    assert "3 of 5 chunks are not labelled yet, the first is 0" in capsys.readouterr().err
    assert label(truth(scenes), *flags, "0", output="two") == 0
    assert label(truth(scenes), "--merge", output="two") == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_is_labelled_is_not_labelled_again(label, scenes, tmp_path):
    assert label(truth(scenes)) == 0
    chunk, seen = tmp_path / "out" / "chunks" / "00002", files(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "chunks").rglob("*.npy")}
    for file in chunk.rglob("*"):
        if file.is_file():
            file.unlink()
    for folder in ("index", "sem_seg", "."):
        (chunk / folder).rmdir()
    assert label(truth(scenes)) == 0
    assert files(tmp_path / "out") == seen
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again and {path.parts[-3] for path in again} == {"00002"}


@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("cv2", "imencode", 3),
        ("cv2", "imencode", 13),
        ("numpy", "save", 5),
        ("numpy", "save", 30),
        ("os", "replace", 1),  # job.json
        ("os", "replace", 3),
        ("os", "fsync", 40),
        ("os", "replace", 8),  # in merging
    ],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(label, scenes, tmp_path, module, name, count):
    assert label(truth(scenes), output="whole") == 0

    def killed():
        place, calls = sys.modules[module], 0
        original = getattr(place, name)

        def last(*args, **options):
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(place, name, last)
        label(truth(scenes))

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert files(tmp_path / "out") != files(tmp_path / "whole")
    assert label(truth(scenes)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.slow
def test_killed_by_the_clock_in_two_processes_and_shards(label, scenes, tmp_path):
    assert label(truth(scenes), output="whole") == 0
    command = [sys.executable, "-m", "d2go_fbnetv5.tools.pseudo_label", "--num-processes", "2"]
    command += ["--config-file", str(tmp_path / "settings.yaml"), "--output-dir", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}

    def started(shard, *flags):
        flags = ["--num-shards", "2", "--shard-index", str(shard), *flags]
        return subprocess.Popen([*command, *flags], env=environment, start_new_session=True)

    killed = 0
    for moment in (1, 2):
        process = started(0)
        while len(list((tmp_path / "out").glob("chunks/*"))) < moment and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    for shard in range(2):
        assert started(shard).wait(300) == 0
    assert label(truth(scenes), "--merge") == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def bright_png(first=0, height=20, width=30):
    """A dark image with a bright rectangle whose upper left pixel says what ``Faulty`` does."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[4:9, 6:15] = 250
    pixels[0, 0] = first
    return pixels


def by_bright(folder, teacher="Bright", **changes):
    group = {"SOURCE": "teacher", "TEACHER": f"planted_teachers:{teacher}"}
    return {"IMAGES": {"folders": str(folder)}, "CLS": group, "DET": group, "SEG": group, **changes}


def assert_labels_lie_on_the_bright(sample):
    bright = sample["image"].float().mean(0) > 127
    assert torch.equal(sample["sem_seg"] == 1, bright) and sample["sem_seg"].max() == 1
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    assert sample["boxes"].tolist() == [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]


def test_every_kind_of_image_file(label, tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub dir").mkdir(parents=True)
    picture = Image.fromarray(bright_png())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    good = {
        "a.png": lambda path: picture.save(path),
        "grey.png": lambda path: picture.convert("L").save(path),
        "cmyk.jpg": lambda path: picture.convert("CMYK").save(path, quality=95),
        "deep.png": lambda path: cv2.imwrite(str(path), bright_png().astype(np.uint16) * 257),
        "deep grey.tiff": lambda path: cv2.imwrite(str(path), bright_png()[..., 0].astype(np.uint16) * 257),
        "palette.png": lambda path: picture.convert("P").save(path),
        "transparent.png": lambda path: picture.convert("RGBA").save(path),
        "turned.jpg": lambda path: picture.save(path, exif=exif, quality=95),
        "sub dir/Ünïcödé 犬 #1%.JPG": lambda path: picture.save(path, format="JPEG", quality=95),
    }
    for name, write in good.items():
        write(folder / name)
    data = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    bad = {"cut.png", "empty.jpg", "text.jpg"}
    before = files(folder)

    assert label(by_bright(folder, BATCH_SIZE=3)) == 0
    dataset = MultitaskDataset(tmp_path / "out" / "index")
    names = [str(dataset.image_path(place).resolve().relative_to(folder)) for place in range(len(dataset))]
    assert sorted(names) == sorted(good)
    for name, sample in zip(names, dataset, strict=True):
        turned = name == "turned.jpg"
        assert sample["image"].shape == ((3, 30, 20) if turned else (3, 20, 30)), name
        assert_labels_lie_on_the_bright(sample)
    lines = skipped(tmp_path / "out")
    assert {Path(line["image"]).name for line in lines} == bad
    assert all(line["task"] is None and "is broken, cut short" in line["reason"] for line in lines)
    assert files(folder) == before


FAULTS = {
    "nan box": ("DET", "boxes has values that are not finite"),
    "nan score": ("DET", "scores has values that are not finite"),
    "nan pixel": ("SEG", "sem_seg_scores has values that are not finite"),
    "nan class": ("CLS", "class_scores has values that are not finite"),
    "score 2": ("DET", "scores has values from 2 to 2, allowed are 0 to 1"),
    "label 1": ("DET", "labels has values from 1 to 1, allowed are 0 to 0"),
    "label -1": ("DET", "labels has values from -1 to -1"),
    "no scores": ("DET", "the teacher gives no scores"),
    "lengths": ("DET", "1 boxes, 2 scores and 1 labels"),
    "classes": ("CLS", "class_scores has the shape (3,), expected 2"),
    "pixels of another size": ("SEG", "sem_seg has the shape (19, 30), expected 20 x 30"),
    "float labels": ("DET", "labels has the type torch.float32, expected integers"),
    "raises": (None, "the teacher failed with RuntimeError: no such luck"),
    "list": (None, "the teacher gives a list for an image, expected a dict"),
}


def test_what_a_teacher_gets_wrong_costs_that_label_and_no_other(label, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, fault in enumerate(Faulty.faults):
        cv2.imwrite(str(folder / f"{number:02d} {fault or 'right'}.png"), bright_png(4 * number))
    assert label(by_bright(folder, "Faulty", BATCH_SIZE=4)) == 0
    problems = {}
    for line in skipped(tmp_path / "out"):
        fault = Path(line["image"]).stem[3:]
        problems.setdefault(fault, {})[line["task"]] = line["reason"]
    assert set(problems) == set(FAULTS)
    dataset = MultitaskDataset(tmp_path / "out" / "index")
    assert len(dataset) == len(Faulty.faults)
    keys = {"CLS": "class_label", "DET": "boxes", "SEG": "sem_seg"}
    for place, sample in enumerate(dataset):
        fault = dataset.image_path(place).stem[3:]
        task, reason = FAULTS.get(fault, ("", ""))
        wrong = set(keys) if task is None else {task} - {""}
        assert set(problems.get(fault, {})) == wrong
        assert all(reason in found for found in problems.get(fault, {}).values())
        assert {name for name, key in keys.items() if key not in sample} == wrong
        if fault == "outside":
            assert sample["boxes"].tolist() == [[0, 0, 4, 4], [28, 1, 30, 3]]
        elif fault == "no area":
            assert sample["boxes"].shape == (0, 4)
        elif not wrong:
            assert_labels_lie_on_the_bright(sample)


def test_a_teacher_that_always_fails_ends_the_run_and_leaves_no_chunk(label, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        cv2.imwrite(str(folder / f"{number}.png"), bright_png())
    assert label(by_bright(folder, "Broken")) == 2
    assert (
        "a teacher failed on all of the 9 images of chunk 0: the teacher failed with RuntimeError: always"
        in (capsys.readouterr().err)
    )
    assert list((tmp_path / "out" / "chunks").iterdir()) == []


def test_a_teacher_must_not_change_the_images(label, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), bright_png())
    assert label(by_bright(folder, "Painter")) == 2
    assert "a teacher has changed the images that it was given" in capsys.readouterr().err


def test_classes_by_the_folders_name(label, tmp_path):
    for number, name in enumerate(["cat", "dog/large", "cow", "."]):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), bright_png())
    (tmp_path / "more" / "dog").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "more" / "dog" / "x.png"), bright_png())
    folders = [str(tmp_path / "photos"), str(tmp_path / "more")]
    settings = {
        "IMAGES": {"folders": folders},
        "CLS": {"SOURCE": "dataset", "REMAP": {"cow": None}, "NAMES": ["wolf", "dog", "cat"]},
    }
    assert label(settings) == 0
    dataset = MultitaskDataset(tmp_path / "out" / "index")
    assert dataset.info.class_names == ("wolf", "dog", "cat") and dataset.info.box_names == ()
    found = {dataset.image_path(i).name: sample.get("class_label") for i, sample in enumerate(dataset)}
    assert found == {"0.png": 2, "1.png": 1, "2.png": None, "3.png": None, "x.png": 1}
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["unlabelled"] == 2


def test_a_few_images_of_many(label, scenes, tmp_path):
    assert label(truth(scenes, LIMIT=4)) == 0
    assert MultitaskDataset(tmp_path / "out" / "index").index.ids.tolist() == [0, 8, 17, 25]


TEACHER = {"SOURCE": "teacher", "TEACHER": "planted_teachers:Bright"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DET": {"SOURCE": "techer"}}, "DET.SOURCE is 'techer', allowed: none, dataset, teacher"),
        ({"DET": {"SOURCE": "teacher"}}, "DET.SOURCE is 'teacher' and DET.TEACHER '', allowed"),
        ({"DET": {**TEACHER, "THRESHOLD": 1.5}}, "DET.THRESHOLD is 1.5, allowed: 0 or more and at most 1"),
        ({"DET": {**TEACHER, "TRESHOLD": 0.5}}, "unknown key DET.TRESHOLD; did you mean DET.THRESHOLD?"),
        (
            {"DET": {**TEACHER, "TEACHER": "nobody"}},
            "DET: unknown teacher 'nobody'; allowed are",
        ),
        (
            {"DET": {**TEACHER, "OPTIONS": {"size": 3}}},
            "DET: teacher 'planted_teachers:Bright' .*'size'; its",
        ),
        ({"DET": {**TEACHER, "OPTIONS": {"device": 3}}}, "DET.OPTIONS has 'device', which DEVICE sets"),
        ({"DET": {**TEACHER, "TEACHER": "planted_teachers:Nobody"}}, "no function 'Nobody', it has .*Bright"),
        ({"DET": {**TEACHER, "TEACHER": "no_such:Thing"}}, "there is no module 'no_such'"),
        ({"DET": {**TEACHER, "TEACHER": "planted_teachers:NoTeacher"}}, "class_names is None, it must be"),
        ({"DET": {**TEACHER, "REMAP": {"dark": "x"}}}, "DET.REMAP has 'dark', allowed .*: bright"),
        (
            {"SEG": {"SOURCE": "dataset"}},
            "SEG.SOURCE is 'dataset', but the data set .* no sem_seg_names; it .* CLS",
        ),
        ({"CLS": {"SOURCE": "none"}}, "are all none: nothing to label"),
        ({"IMAGES": {"READER": "nothing"}}, "IMAGES: unknown data set 'nothing'"),
        (
            {"IMAGES": {"READER": "digit_scenes_val"}},
            "IMAGES.READER is 'digit_scenes_val', allowed are readers of",
        ),
        ({"IMAGES": {"folders": "nowhere"}}, "folder of images nowhere does not exist"),
        ({"CHUNK_SIZE": 0}, "CHUNK_SIZE is 0, allowed: 1 or more"),
        ({"DEVICE": "tpu"}, "DEVICE is 'tpu', allowed: cpu, cuda"),
    ],
)
def test_wrong_settings(label, tmp_path, capsys, changes, message):
    folder = tmp_path / "photos" / "class"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), bright_png())
    settings = {"IMAGES": {"folders": str(folder.parent)}, "CLS": {"SOURCE": "dataset"}, **changes}
    assert label(settings) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("pseudo_label: ") and all(line.startswith("INFO: ") for line in progress)
    assert re.search(message, error), error


def test_wrong_flags(label, scenes, capsys):
    for flags, message in [
        (("--shard-index", "1"), "--shard-index is 1 and --num-shards 1"),
        (("--preview", "-1"), "--preview is -1, allowed: 0 or more"),
        (("--preview", "1", "--num-shards", "2"), "--preview needs all shards"),
    ]:
        assert label(truth(scenes), *flags) == 2
        assert message in capsys.readouterr().err


def test_a_continuation_agrees_with_its_beginning(label, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), bright_png())
    assert label(by_bright(folder)) == 0
    assert label(by_bright(folder, BATCH_SIZE=2)) == 0
    capsys.readouterr()
    changed = by_bright(folder)
    assert label({**changed, "DET": {**changed["DET"], "THRESHOLD": 0.6}}) == 2
    assert "holds labels that were made with DET.THRESHOLD 0.5, found 0.6" in capsys.readouterr().err
    cv2.imwrite(str(folder / "b.png"), bright_png())
    assert label(by_bright(folder)) == 2
    assert "holds labels of other images, with number 1, found 2" in capsys.readouterr().err
    assert label(by_bright(folder), output="photos/out") == 2
    assert "in the folder of images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["imagenet_paper.yaml", "digits.yaml"])
def test_shipped_settings_are_valid(name):
    settings = load_settings(f"pseudo_label/{name}", ["DEVICE", "cpu"])
    assert settings.DET.THRESHOLD == settings.SEG.THRESHOLD == 0.5
    for task in ("CLS", "DET", "SEG"):
        teacher = settings[task].TEACHER
        assert (settings[task].SOURCE == "teacher") == bool(teacher)
        assert teacher in ("", *list_teachers())


def test_the_papers_settings_write_what_the_search_reads():
    settings, search = (
        load_settings("pseudo_label/imagenet_paper.yaml", ["DEVICE", "cpu"]),
        load_cfg("search.yaml"),
    )
    train = search.FBNETV5_DATA.DATASETS.imagenet_multitask_train
    assert Path(train.index) == Path(settings.OUTPUT_DIR) / "index"
