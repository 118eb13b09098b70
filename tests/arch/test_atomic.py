import pytest

from d2go_fbnetv5.arch.atomic import replacing, write_atomically


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
