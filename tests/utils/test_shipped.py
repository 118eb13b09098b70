from pathlib import Path

from d2go_fbnetv5.utils.shipped import or_shipped, shipped_folder


def test_a_file_of_ones_own_comes_before_the_shipped_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert or_shipped("configs/search.yaml") == or_shipped("search.yaml") == shipped_folder() / "search.yaml"
    Path("search.yaml").write_text("SEED: 1\n")
    assert or_shipped("search.yaml") == "search.yaml"
    for nothing in ("", "mine.yaml", "detectron2://mine.pth", str(tmp_path / "configs" / "search.yaml")):
        assert or_shipped(nothing) == nothing
