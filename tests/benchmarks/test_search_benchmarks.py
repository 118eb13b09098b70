"""The benchmarks of the search: their helpers, and that each runs from command to table."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2go_fbnetv5 import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

_spec = importlib.util.spec_from_file_location("benchmarks_common", BENCHMARKS / "common.py")
common = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(common)


def run(script, output, *args):
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--output", str(output), *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text()), result.stdout


def test_a_table_is_markdown():
    rows = [{"a": 1, "b": 0.123456}, {"a": "x"}]
    assert common.markdown(rows, ["a", "b"]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 0.1235 |",
        "| x |  |",
    ]


def test_turns_rotate():
    order = []
    found = common.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("abbaab")
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_results_of_other_options_are_not_taken_for_these(tmp_path):
    def ask(steps):
        args = argparse.Namespace(folder=tmp_path, quick=False, steps=steps)
        return common.run_folder(args, "ablation", ["steps"])

    assert ask(4) == ask(4) == tmp_path
    with pytest.raises(ValueError, match=f"{tmp_path} holds results of --steps 4, asked is 5"):
        ask(5)


@pytest.mark.slow
def test_searches_from_timms_weights_are_set_beside_those_from_nothing(tmp_path):
    pytest.importorskip("timm")
    content, _ = run("warm_start.py", tmp_path / "warm.json", "--folder", tmp_path / "runs")
    (rows,) = (rows for title, rows in content.items() if title.startswith("Classification loss"))
    starts = ["nothing", "its weights, a new head", "its weights and head"]
    assert [row["a search from"] for row in rows] == starts


@pytest.mark.slow
def test_algorithm_cost_counts_the_passes_of_table_1(tmp_path):
    content, printed = run("algorithm_cost.py", tmp_path / "cost.json")
    passes = {
        (row["algorithm"], row["T"]): (row["forward"], row["backward"])
        for row in content["Cost of a search step"]
    }
    assert passes["4", 1] == passes["4", 3] == passes["1, straight-through", 1] == (1, 1)
    assert passes["2, REINFORCE", 3] == passes["2, straight-through", 3] == (3, 3)
    assert passes["3", 3] == (1, 3)
    assert all(row["peak MB"] > 0 for row in content["Cost of a search step"])
    assert "| algorithm | T |" in printed


@pytest.mark.slow
def test_what_was_found_is_judged_beside_other_networks(tmp_path):
    found = {"seg": {"topology": Topology([[0, 1, 0, 0]] * 4), "outputs": ("path1",)}}
    save_topologies(tmp_path / "topologies.json", "N", 4, (96, 96), found)
    arguments = ("exhaustive.py", tmp_path / "out.json", tmp_path, "--folder", tmp_path / "runs")
    content, _ = run(*arguments)
    (row,) = content["What was found among others"]
    judged = json.loads((tmp_path / "runs" / "networks.json").read_text())["seg"]
    assert len(judged) == 3 and 0 <= row["better, % of networks"] <= 100
    again, _ = run(*arguments)
    assert again["What was found among others"] == [row]


@pytest.mark.slow
def test_replays_are_judged_by_what_was_measured(tmp_path):
    content, _ = run("replay.py", tmp_path / "out.json", "--folder", tmp_path / "runs")
    rows = content["2 searches on measured losses"]
    assert [(row["search"], row["of it"]) for row in rows][:2] == [
        ("the recipe", "mode"),
        ("the recipe", "best of the likeliest"),
    ]
    assert all(0 < place <= 100 for row in rows for found in row["places"].values() for place in found)
    losses = json.loads((tmp_path / "runs" / "losses.json").read_text())
    assert {name: (len(table), {len(row) for row in table}) for name, table in losses.items()} == {
        "cls": (2, {260}),
        "det": (2, {260}),
        "seg": (2, {260}),
    }
    again, _ = run("replay.py", tmp_path / "out.json", "--folder", tmp_path / "runs")
    assert again["2 searches on measured losses"] == rows


@pytest.mark.slow
def test_ablation_goes_on_where_it_was_and_repeats_nothing(tmp_path):
    arguments = ("ablation.py", tmp_path / "out.json", "--folder", tmp_path)
    first, _ = run(*arguments)
    origins = {(row["origin"], row["topology"]) for row in first["runs"]}
    # Four stages have no room for PANet's and BiFPN's.
    assert {name for origin, name in origins if origin == "hand-made"} == {"linear", "FPN, U-Net"}
    assert {("Algorithm 1", "mode"), ("Algorithm 4", "mode"), ("random", "mean")} < origins
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "quick" / "results").rglob("*.json")}
    again, _ = run(*arguments)
    assert again["runs"] == first["runs"]
    assert kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "quick" / "results").rglob("*.json")
    }


@pytest.mark.slow
def test_one_network_for_several_tasks_is_set_beside_three_and_nothing_is_repeated(tmp_path):
    arguments = ("several.py", tmp_path / "out.json", "--folder", tmp_path, "--networks", "three", "group")
    content, _ = run(*arguments)
    three, one = next(rows for title, rows in content.items() if title.startswith("One network"))
    assert three["steps"] == one["steps"] == 3
    assert one["of backbones"] < three["of backbones"] and one["MFLOPs"] < three["MFLOPs"]
    (kept,) = (tmp_path / "quick" / "results").glob("*.json")
    figures = json.loads(kept.read_text())["0"]
    assert set(figures) == {"cls", "det", "seg", "group"}
    assert three["MFLOPs"] == pytest.approx(sum(figures[task]["mflops"] for task in ("cls", "det", "seg")))
    again, _ = run(*arguments)
    assert next(rows for title, rows in again.items() if title.startswith("One network")) == [three, one]


@pytest.mark.slow
def test_what_is_added_later_is_set_beside_a_search_at_once_copies_and_chance(tmp_path):
    arguments = ("addition.py", tmp_path / "out.json", "--folder", tmp_path, "--added", "depth")
    content, _ = run(*arguments)
    rows = next(rows for title, rows in content.items() if title.startswith("Trained networks of depth"))
    assert [row["topology"] for row in rows] == [
        "added later",
        "searched for at once",
        "copied from seg",
        "random",
    ]
    assert {row["metric"] for row in rows} == {"delta1"}
    # A topology is trained once, whoever found it.
    kept = json.loads((tmp_path / "quick" / "results" / "trained_depth_digits.json").read_text())
    assert len(kept) == len({row["network"] for row in content["runs"]})
    again, _ = run(*arguments)
    assert again["runs"] == content["runs"]
