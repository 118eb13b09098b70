import json
import math

import pytest
import torch

from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.reports.run_agreement import read_agreement, run_names
from d2go_fbnetv5.reports.run_agreement_page import agreement_figure, agreement_page, agreement_table

ONE = [[0.9, 0.2, 0.6, 0.1], [0.8, 0.3, 0.4, 0.7]]
TWO = [[0.8, 0.6, 0.7, 0.2], [0.1, 0.4, 0.3, 0.9]]


def finished_run(folder, **probabilities):
    folder.mkdir(parents=True)
    entries = {
        task: {"topology": Topology([[p > 0.5 for p in row] for row in probs]), "probabilities": probs}
        | {"outputs": ["path3"]}
        for task, probs in probabilities.items()
    }
    save_topologies(folder / "topologies.json", "N", 2, (64, 64), entries)
    return folder


def running_run(folder, **probabilities):
    folder.mkdir(parents=True)
    lines = [{"iteration": 0, **{f"probs/{task}": [[0.5] * 4] * 2 for task in probabilities}}]
    lines.append({"iteration": 9, **{f"probs/{task}": probs for task, probs in probabilities.items()}})
    (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_figures_are_those_counted_by_hand(tmp_path):
    runs = [finished_run(tmp_path / "a", cls=ONE), running_run(tmp_path / "b", cls=TWO)]
    (agreement,) = read_agreement(runs)
    (pair,) = agreement.pairs
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.equal == 6 / 8  # all but the second block of Stage 1 and the first of Stage 2
    assert pair.by_chance == 0.5  # both keep four of eight
    expected = torch.corrcoef(torch.tensor([ONE, TWO]).double().flatten(1))[0, 1].item()
    assert pair.correlation == pytest.approx(expected)


def test_runs_that_found_the_same_agree_wholly(tmp_path):
    runs = [finished_run(tmp_path / str(seed), cls=ONE, det=TWO) for seed in range(3)]
    for agreement in read_agreement(runs):
        assert len(agreement.pairs) == 3
        assert agreement.mean.equal == 1.0
        assert agreement.mean.correlation == pytest.approx(1.0)


def test_undecided_runs_have_no_correlation(tmp_path):
    flat = [[0.5] * 4] * 2
    runs = [running_run(tmp_path / str(seed), cls=flat) for seed in range(2)]
    (agreement,) = read_agreement(runs)
    assert math.isnan(agreement.mean.correlation)
    assert "nan" not in agreement_page([agreement])


def test_tasks_in_common_are_compared(tmp_path):
    runs = [finished_run(tmp_path / "a", cls=ONE, det=TWO), finished_run(tmp_path / "b", det=ONE)]
    assert [agreement.task for agreement in read_agreement(runs)] == ["det"]
    with pytest.raises(ValueError, match=r"b: no task 'cls'; available: det"):
        read_agreement(runs, ["cls"])


def test_what_cannot_be_compared_is_said(tmp_path):
    one, two = finished_run(tmp_path / "a", cls=ONE), finished_run(tmp_path / "b", det=ONE)
    deep = running_run(tmp_path / "c", cls=[*ONE, [0.5] * 4])
    (tmp_path / "empty").mkdir()
    for runs, message in (
        ([one], "two or more runs, found 1"),
        ([one, two], "no task in common"),
        ([one, deep], r"\(2, 4\), \(3, 4\)"),
        ([one, tmp_path / "empty"], "empty: no probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            read_agreement(runs)


def test_names_tell_runs_apart():
    assert run_names(["out/a", "out/b"]) == ("a", "b")
    assert run_names(["x/a/run", "x/b/run"]) == ("a/run", "b/run")
    assert run_names(["x/a", "x/a"]) == ("a (1)", "a (2)")


def test_table_picture_and_page_show_the_same(tmp_path):
    runs = [
        finished_run(tmp_path / name, cls=probs) for name, probs in (("a", ONE), ("b", TWO), ("c<i>", ONE))
    ]
    agreements = read_agreement(runs)
    cells = [list(column.cells) for column in agreement_table(agreements).columns]
    assert [str(cell) for cell in cells[2]] == ["75%", "100%", "75%", "83%"]
    page = agreement_page(agreements)
    assert "<i>" not in page
    for text in ("a – c&lt;i&gt;", "75%", "100%", "83%"):
        assert text in page
    blocks, pairs = agreement_figure(agreements).axes
    assert [text.get_text() for text in blocks.texts][:2] == ["3/3\n0.87", "2/3\n0.57"]
    assert [text.get_text() for text in pairs.texts] == [
        "",
        "75%",
        "100%",
        "75%",
        "",
        "75%",
        "100%",
        "75%",
        "",
    ]
