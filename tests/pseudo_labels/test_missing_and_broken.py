"""Images that are not there, files of OUTPUT_DIR that are not as they were written, and other processes."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess

import cv2
import numpy as np
import pytest
from planted_teachers import Bright

from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.data.image_folders import ImageFolders
from d2go_fbnetv5.data.index_arrays import MultitaskIndex, Strings
from d2go_fbnetv5.data.index_files import save_index
from d2go_fbnetv5.pseudo_labels import register_teacher
from d2go_fbnetv5.pseudo_labels.output import Output
from d2go_fbnetv5.tasks.base import DatasetInfo

GROUP = {"SOURCE": "teacher", "TEACHER": "planted_teachers:Bright"}


@pytest.fixture
def photos(tmp_path):
    """20 dark images with a bright rectangle each, in chunks of 8, 8 and 4 where CHUNK_SIZE is 8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        pixels = np.zeros((20, 30, 3), np.uint8)
        pixels[2 : 4 + number % 8, 6:15] = 250
        cv2.imwrite(str(folder / f"{number:02d}.png"), pixels)
    return folder


def settings(folder, **changes):
    return {
        "IMAGES": {"folders": str(folder)},
        "CLS": GROUP,
        "DET": GROUP,
        "SEG": GROUP,
        "CHUNK_SIZE": 8,
        **changes,
    }


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


@pytest.fixture
def vanishing(monkeypatch):
    """Moves a folder of images away once so many of them were read."""

    def after(count, folder, number=None):
        read, original = [], ImageFolders.__getitem__

        def getitem(self, index):
            read.append(index)
            if len(read) > count and number is not None:
                raise OSError(number, os.strerror(number), str(self.image_path(index)))
            if len(read) == count + 1:
                folder.rename(folder.parent / "away")
            return original(self, index)

        monkeypatch.setattr(ImageFolders, "__getitem__", getitem)
        return monkeypatch.undo

    return after


@pytest.mark.parametrize("moment", [0, 5, 9, 17])
def test_a_folder_that_vanishes_ends_the_run_and_the_same_command_ends_it_well(
    label, photos, tmp_path, vanishing, capsys, moment
):
    assert label(settings(photos), output="whole") == 0
    back = vanishing(moment, photos)
    assert label(settings(photos)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "are missing or cannot be opened, among them" in message and "photos" in message
    back()
    (tmp_path / "away").rename(photos)
    assert label(settings(photos)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("error", ["EIO", "ESTALE", "EACCES", "ENOTCONN"])
def test_a_disk_that_answers_with_errors_is_no_broken_image(
    label, photos, tmp_path, vanishing, capsys, error
):
    back = vanishing(3, photos, getattr(errno, error))
    assert label(settings(photos)) == 2
    assert "are missing or cannot be opened" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "chunks").iterdir())
    back()
    assert label(settings(photos)) == 0


def test_a_few_missing_images_are_told_and_tried_again(label, photos, tmp_path, vanishing, capsys, caplog):
    assert label(settings(photos), output="whole") == 0
    photos.joinpath("03.png").rename(tmp_path / "3")
    photos.joinpath("03.png").symlink_to(tmp_path / "nowhere.png")  # listed, and not there
    assert label(settings(photos)) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["missing"] == 1
    assert "1 of the images that were not read are missing" in caplog.text
    assert [line["image"] for line in skipped(tmp_path / "out")] == ["../photos/03.png"]
    before = files(tmp_path / "out")
    assert label(settings(photos)) == 0
    assert files(tmp_path / "out") == before
    photos.joinpath("03.png").unlink()
    (tmp_path / "3").rename(photos / "03.png")
    assert label(settings(photos)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_image_that_was_mended_is_labelled(label, photos, tmp_path):
    assert label(settings(photos), output="whole") == 0
    whole = (photos / "11.png").read_bytes()
    (photos / "11.png").write_bytes(whole[:60])
    assert label(settings(photos)) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["skipped"], summary["missing"]) == (1, 0)
    (photos / "11.png").write_bytes(whole)
    assert label(settings(photos)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_many_missing_images_can_be_left_out(label, photos, tmp_path, capsys):
    for number in range(16):
        (photos / f"{number:02d}.png").unlink()
        (photos / f"{number:02d}.png").symlink_to("nowhere")
    assert label(settings(photos)) == 2
    assert "SKIP_MISSING True leaves out what is missing" in capsys.readouterr().err
    assert label(settings(photos, SKIP_MISSING=True)) == 0
    assert len(MultitaskDataset(tmp_path / "out" / "index")) == 4


def test_a_set_of_which_nothing_can_be_read_is_an_error(label, photos, capsys):
    for file in photos.iterdir():
        file.write_bytes(b"no image")
    assert label(settings(photos)) == 2
    assert "none of 20 images could be read" in capsys.readouterr().err


def spoil(folder, kind):
    chunk = folder / "chunks" / "00001"
    target = {"flip": "index/boxes.npy", "cut": "index/ids.npy", "list": "statistics.json"}.get(
        kind, "skipped.jsonl"
    )
    data = (chunk / target).read_bytes()
    if kind == "flip":
        (chunk / target).write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
    elif kind == "cut":
        (chunk / target).write_bytes(data[: len(data) // 2])
    elif kind == "list":
        (chunk / target).write_text("[]")
    elif kind == "no seal":
        (chunk / "chunk.json").unlink()
    elif kind == "no map":
        next((chunk / "sem_seg").iterdir()).unlink()
    elif kind == "another chunk":
        shutil.rmtree(chunk)
        shutil.copytree(chunk.parent / "00000", chunk)
    elif kind == "a file":
        shutil.rmtree(chunk)
        chunk.write_text("no folder")
    elif kind == "another job":
        shutil.rmtree(chunk)
        shutil.copytree(folder.parent / "other" / "chunks" / "00001", chunk)
    elif kind == "a folder in place of a file":
        (chunk / target).unlink()
        (chunk / target).mkdir()


@pytest.mark.parametrize(
    "kind",
    [
        *("flip", "cut", "list", "no seal", "no map", "another chunk", "a file", "another job"),
        "a folder in place of a file",
    ],
)
def test_a_chunk_that_is_not_as_it_was_written_is_labelled_anew(
    label, photos, tmp_path, caplog, capsys, kind
):
    assert label(settings(photos)) == 0
    if kind == "another job":
        assert label(settings(photos, DET={**GROUP, "THRESHOLD": 0.9}), output="other") == 0
    whole = files(tmp_path / "out")
    spoil(tmp_path / "out", kind)
    assert label(settings(photos), "--merge") == 2
    assert "1 of 3 chunks are not labelled yet, the first is 1" in capsys.readouterr().err
    assert label(settings(photos)) == 0
    assert "00001 is not as this labelling wrote it" in caplog.text
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "5",
        '{"settings": {}}',
        '{"settings": 1, "images": []}',
        b"\xff\x00",
    ],
)
def test_a_job_of_any_content_is_one_sentence(label, photos, tmp_path, capsys, text):
    assert label(settings(photos)) == 0
    (tmp_path / "out" / "job.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    assert label(settings(photos)) == 2
    error = capsys.readouterr().err
    assert "job.json" in error and "Traceback" not in error


def test_a_continuation_knows_numbers_as_keys(label, photos):
    group = {**GROUP, "REMAP": {"bright": 7}, "OPTIONS": {}}
    assert label(settings(photos, DET=group)) == 0
    assert label(settings(photos, DET=group)) == 0


def test_output_dir_must_be_a_folder(label, photos, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    for output in ("out", "out/below"):
        assert label(settings(photos), output=output) == 2
        assert f"OUTPUT_DIR is {tmp_path / output}, which cannot be written" in capsys.readouterr().err


def test_two_processes_cannot_label_the_same_chunks(label, photos, tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    (tmp_path / "out").mkdir()

    def other():
        with Output(tmp_path / "out").claimed(range(1, 3, 2)):
            begun.set()
            end.wait(60)

    child = context.Process(target=other)
    child.start()
    assert begun.wait(60)
    try:
        for flags in ((), ("--merge",), ("--num-shards", "2", "--shard-index", "1")):
            assert label(settings(photos), *flags) == 2
            assert "another process is labelling" in capsys.readouterr().err
        assert label(settings(photos), "--num-shards", "2", "--shard-index", "0") == 0
    finally:
        end.set()
        child.join(60)
    assert label(settings(photos)) == 0


@register_teacher("ends")
class Ends(Bright):
    """Ends its process, or tries to, at the image whose rectangle has five rows."""

    def __init__(self, device, how: str) -> None:
        self.how = how

    def label(self, image):
        if int((image[0, :, 6] > 127).sum()) == 5:
            if self.how == "exit":
                raise SystemExit(0)
            if self.how == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), getattr(signal, self.how))
        return super().label(image)


def ends(how):
    return {
        "CLS": {"SOURCE": "teacher", "TEACHER": "ends", "OPTIONS": {"how": how}},
        "DET": GROUP,
        "SEG": GROUP,
    }


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_teacher_that_exits_or_interrupts_costs_that_label(label, photos, tmp_path, how):
    before = signal.getsignal(signal.SIGINT)
    assert label(settings(photos, **ends(how))) == 0
    assert {(line["image"][-6:-4], line["task"]) for line in skipped(tmp_path / "out")} == {
        ("03", "CLS"),
        ("11", "CLS"),
        ("19", "CLS"),
    }
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ctrl_c_is_the_users_own_while_a_teacher_runs(label, photos, tmp_path, capsys, number, status):
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in a shell's background ignores it
    try:
        assert label(settings(photos, **ends(number))) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "chunks").iterdir())


def test_the_image_that_ends_the_process_is_named_by_the_next_one(
    label, photos, tmp_path, caplog, monkeypatch
):
    child = multiprocessing.get_context("fork").Process(
        target=label, args=(settings(photos, BATCH_SIZE=1, **ends("SIGKILL")),)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert Output(tmp_path / "out").cut_off(0) == ["../photos/03.png"]
    monkeypatch.setattr(Ends, "label", Bright.label)
    assert label(settings(photos, **ends("SIGKILL"))) == 0
    assert "an earlier process was ended while it labelled ../photos/03.png" in caplog.text
    assert not list((tmp_path / "out").rglob("*.tmp")) and not list((tmp_path / "out").rglob("labelling"))


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many kB, or gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes):
        options = f"size={kilobytes}k" + (",remount" if os.path.ismount(folder) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")

    yield resize
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("kilobytes", [4, 40, 130, 180])
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    label, photos, tmp_path, small_disk, capsys, kilobytes
):
    (tmp_path / "other").mkdir()
    assert label(settings(photos), output="other/out") == 0
    small_disk(kilobytes)
    assert label(settings(photos), output="disk/out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error and str(tmp_path / "disk" / "out") in error
    small_disk(4000)
    assert label(settings(photos), output="disk/out") == 0
    assert files(tmp_path / "disk" / "out") == files(tmp_path / "other" / "out")


def test_an_index_of_large_arrays_on_a_full_disk_is_named(tmp_path, small_disk):
    small_disk(300)
    count = 20000
    index = MultitaskIndex(
        DatasetInfo(class_names=("a",)),
        np.arange(count),
        np.ones((count, 2), np.int32),
        Strings.of(map(str, range(count))),
        class_labels=np.zeros(count, np.int32),
    )
    with pytest.raises(OSError, match=f"No space left on device.*{tmp_path / 'disk'}"):
        save_index(index, tmp_path / "disk" / "index")
    assert not list((tmp_path / "disk").iterdir())
