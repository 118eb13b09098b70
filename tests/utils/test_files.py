import errno
import os
import subprocess
import sys

import pytest

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import (
    SIGNATURE,
    AppendedFile,
    FolderLock,
    is_ours,
    naming,
    refuse_others,
    remove_rests,
    remove_rests_in,
    replacing,
    replacing_folder,
    write_atomically,
)


def test_what_lies_under_a_name_is_ours_if_it_is_signed_at_its_beginning_or_end_or_empty(tmp_path):
    path = tmp_path / "a"
    refuse_others(path)
    for before, after in ((0, 0), (16000, 200000), (200000, 16000), (0, 5)):
        path.write_bytes(b"x" * before + SIGNATURE.encode() + b"y" * after)
        refuse_others(path)
    path.write_bytes(b"")
    assert is_ours(path)
    path.write_bytes(b"x" * 100000 + SIGNATURE.encode() + b"y" * 100000)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for other in (path, tmp_path / "link", tmp_path / "folder", os.devnull):
        with pytest.raises(InputError, match=rf"{other} is there and is nothing .*; choose another name"):
            refuse_others(other)


def test_a_file_is_replaced_by_what_the_block_wrote(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old ä")
    assert path.read_text(encoding="utf-8") == "old ä"
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_text(encoding="utf-8") == "old ä"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "a.txt", "x")


def content(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_replaced_by_what_the_block_filled(tmp_path):
    path = tmp_path / "new" / "set"
    for number in range(2):
        with replacing_folder(path) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / f"{number}.txt").write_text("x")
            assert not path.exists() or content(path) == {"sub/0.txt": "x"}
        assert content(path) == {f"sub/{number}.txt": "x"}
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_folder_and_no_rest(tmp_path):
    path = tmp_path / "set"
    with replacing_folder(path) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(path) as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert content(path) == {"a": "old"} and list(tmp_path.iterdir()) == [path]


def test_rests_of_killed_processes_are_removed(tmp_path):
    for name in ("set.12.tmp", "set.12.old.tmp", "set", "sets.1.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "set.3.tmp").touch()
    remove_rests(tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "sets.1.tmp"]


def test_the_next_run_removes_all_rests_and_nothing_else(tmp_path):
    for name in (
        "model_0000007.pth.host.12.tmp",
        "model.json.host.12.0a1b2c3d.tmp",
        "notes.tmp",
        "model.json",
    ):
        (tmp_path / name).touch()
    remove_rests_in(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "notes.tmp"]


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_what_is_being_written_is_no_rest(tmp_path, write):
    with write(tmp_path / "a") as temporary:
        if write is replacing_folder:
            (temporary / "inside").touch()
        remove_rests_in(tmp_path)
        assert temporary.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("d2go_fbnetv5.utils.files.secrets.token_hex", lambda _: "00000000")
    with replacing(tmp_path / "a") as temporary:
        planted = temporary.name
    os.symlink(victim, tmp_path / planted)
    write_atomically(tmp_path / "a", "new")  # the link is a rest, and removed
    assert victim.read_text() == "mine" and (tmp_path / "a").read_text() == "new"
    monkeypatch.setattr("d2go_fbnetv5.utils.files.remove_rests", lambda _: None)
    os.symlink(victim, tmp_path / planted)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", "newer")
    assert victim.read_text() == "mine"


def full_disk():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"), replacing(tmp_path / "a.txt"):
        raise full_disk()
    with pytest.raises(OSError, match=r"other\.txt"), naming(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "full", "other.txt")


def test_an_appended_file_writes_all_and_names_itself_when_it_cannot(tmp_path):
    file = AppendedFile(tmp_path / "a", new=True)
    with pytest.raises(FileExistsError):
        AppendedFile(tmp_path / "a", new=True)
    file.write(b"one")
    assert (tmp_path / "a").read_bytes() == b"one"

    class Half:
        def write(self, content):
            if written:
                raise full_disk()
            written.append(bytes(content[:2]))
            return 2

    written = []
    file._file.close()
    file._file = Half()
    with pytest.raises(OSError, match="No space left on device: '.*a'"):
        file.write(b"three")
    assert written == [b"th"]


HOLD = """
import os, sys, time
from d2go_fbnetv5.utils.files import FolderLock
lock = FolderLock(sys.argv[1])
claimed = lock.claim()
if os.fork() > 0:  # the child is as a loader's worker
    print(claimed, flush=True)
time.sleep(30)
"""


def test_a_folder_is_one_process_until_it_is_killed_whatever_its_children_do(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            lock = FolderLock(tmp_path)
            assert not lock.claim()
            assert lock.holder.startswith(f"process {holder.pid} on ")
            holder.kill()
            holder.wait()
            assert lock.claim() and (lock.holder, lock.problem) == ("", "")
            lock.release()
        finally:
            os.killpg(holder.pid, 9)


def test_a_disk_without_locks_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("d2go_fbnetv5.utils.files.fcntl.lockf", no_locks)
    lock = FolderLock(tmp_path)
    assert lock.claim() and "locks" in lock.problem
