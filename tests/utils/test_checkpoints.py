import contextlib
import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.utils.checkpoints import read_tensors, save_tensors
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import naming


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.pth"
    save_tensors(path, {"model": {"w": torch.arange(40.0)}, "iteration": 3})
    return path


def test_what_is_saved_is_read(good):
    content = read_tensors(good)
    assert torch.equal(content["model"]["w"], torch.arange(40.0)) and content["iteration"] == 3
    assert {name.split("/")[0] for name in zipfile.ZipFile(good).namelist()} == {"archive"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_a_full_disk_is_the_systems_error_and_not_torchs(tmp_path, monkeypatch, size):
    @contextlib.contextmanager
    def full(path):
        with naming(path):
            yield Path("/dev/full")

    monkeypatch.setattr("d2go_fbnetv5.utils.checkpoints.replacing", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.pth'"):
        save_tensors(tmp_path / "a.pth", {f"w{i}": torch.ones(size) for i in range(3)})


def test_every_flipped_bit_is_seen_or_changes_nothing(good, tmp_path):
    whole, flips = good.read_bytes(), random.Random(5)
    refused = 0
    for _ in range(150):
        place = flips.randrange(len(whole))
        bad = tmp_path / "bad.pth"
        bad.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << flips.randrange(8))]) + whole[place + 1 :]
        )
        try:
            content = read_tensors(bad)
        except ValueError as error:
            assert str(error).startswith(str(bad))
            refused += 1
        else:
            assert torch.equal(content["model"]["w"], torch.arange(40.0)), place
    assert refused > 50


def test_every_cut_is_seen(good, tmp_path):
    whole = good.read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pth"):
            read_tensors(tmp_path / "cut.pth")


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(compression=zipfile.ZIP_STORED, **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name.replace("_", "/"), content)
    return buffer.getvalue()


OTHERS = {
    "text": b"hello",
    "yaml": b"a: 1",
    "empty": b"",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "nested": b"[" * 100000,
    "code": saved({"model": Call(print, "ran")}),
    "code of old": saved({"model": Call(print, "ran")}, _use_new_zipfile_serialization=False),
    "pickle": pickle.dumps(Call(print, "ran")),
    "archive": archive(a="x"),
    "bomb": archive(zipfile.ZIP_DEFLATED, **{"a_data.pkl": b"x", "a_data_0": bytes(20_000_000)}),
    "program": archive(**{"a_data.pkl": b"x", "a_constants.pkl": b"x"}),
    "sparse": saved({"w": torch.ones(2).to_sparse()}),
    "meta": saved({"w": [torch.ones(2, device="meta")]}),
    "complex": saved({"w": torch.ones(2, dtype=torch.complex64)}),
    "expanded": saved({"w": torch.ones(1).expand(10**9)}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_is_refused_in_one_sentence_without_torchs_advice(tmp_path, kind, capsys):
    path = tmp_path / "other.pth"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(ValueError, match=r"other\.pth") as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message and "weights_only" not in message and len(message) < 400
    assert "ran" not in capsys.readouterr().out


def test_a_file_from_before_archives_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(path)["w"], torch.ones(3))


def test_contents_in_a_circle_end(tmp_path):
    circle = {"w": torch.ones(2)}
    circle["itself"] = circle
    torch.save(circle, tmp_path / "circle.pth")
    assert torch.equal(read_tensors(tmp_path / "circle.pth")["w"], torch.ones(2))


def test_a_file_that_is_not_there_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        read_tensors(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_tensors(tmp_path)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "a.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(
        InputError, match="a.pth is a pointer of Git LFS and not the file itself; `git lfs pull`"
    ):
        read_tensors(tmp_path / "a.pth")
