import pytest

from d2go_fbnetv5.utils.files import remove_rests, replacing, replacing_folder, write_atomically


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
