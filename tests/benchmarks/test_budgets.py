"""What budgets take of a front, and who is put beside it."""

import json
import sys

import pytest

from d2go_fbnetv5.arch import BlockCosts, Topology
from d2go_fbnetv5.arch.topology_file import TopologyEntry, TopologyFile

COSTS = BlockCosts("flops", (1.0, 1.0, 1.0, 1.0), (10.0, 20.0, 30.0, 40.0))


def one_path(*stages):
    """Blocks of Path 1 alone, 20 each; without one its head needs Paths 0 and 1 of Stage 0, with one at Stage 1 all."""
    return Topology([[0, kept, 0, 0] for kept in stages])


def front_of(*networks):
    entries = tuple(TopologyEntry(network, ("path1",)) for network in networks)
    return TopologyFile("front.json", "N", 3, (96, 96), {"det": entries[0]}, {"det": entries})


@pytest.fixture
def budgets(load_benchmark, monkeypatch):
    # A front is asked for a budget in the family's own FLOPs; here they are made of tens.
    monkeypatch.setattr("d2go_fbnetv5.arch.topology_file.block_costs", lambda *args: COSTS)
    return load_benchmark("budgets")


def test_budgets_go_evenly_from_the_cheapest_to_the_dearest(budgets):
    none, one, three = one_path(0, 0, 0), one_path(0, 1, 0), one_path(1, 1, 1)
    front = front_of(three, one, none)  # the least loss first
    # 2, 22 and 64 are there; of the budgets 22.7, 43.3 and 64 the second gives the network of 22 again.
    assert budgets.picked(front, "det", COSTS, 3) == [one, three]
    assert budgets.picked(front, "det", COSTS, 1) == [three]


def test_rivals_cost_the_same_and_are_others(budgets):
    everything = [
        one_path(0, 0, 0),
        one_path(1, 0, 0),
        one_path(0, 1, 0),
        one_path(0, 0, 1),
        one_path(1, 1, 0),
    ]
    cost = lambda network: COSTS.network(network, ("path1",))  # noqa: E731
    # They cost 2, 24, 22, 22 and 44.
    found = budgets.rivals(everything[1], everything, cost, 0.1, 3, "det")
    assert sorted(map(repr, found)) == sorted(map(repr, everything[2:4]))
    assert budgets.rivals(everything[1], everything, cost, 0.1, 1, "det") == found[:1]
    assert len(budgets.rivals(everything[1], everything, cost, 1.0, 9, "det")) == 4


def test_of_few_stages_all_networks_are_candidates_and_of_more_some_of_any_cost(budgets, monkeypatch):
    assert budgets.candidates(("path1",), 2) == budgets.distinct_networks(("path1",), 2)
    monkeypatch.setattr(budgets, "DRAWN", 300)
    found = budgets.candidates(("path1",), 7)
    assert found == budgets.candidates(("path1",), 7) and len(set(found)) == len(found) <= 300
    assert all(network == network.prune(("path1",)) for network in found)
    kept = sorted(sum(map(sum, network.mask)) for network in found)
    assert kept[0] == 0 and kept[-1] >= 24  # of the 25 that Path 1 can see


@pytest.mark.slow
def test_the_command_trains_and_goes_on(budgets, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    search, dense = tmp_path / "search", Topology([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    (search / "front").mkdir(parents=True)
    networks = (dense, Topology([[0] * 4] * 4))
    points = [{"topology": each.to_dict(), "loss": loss} for loss, each in enumerate(networks)]
    tasks = {"det": {"outputs": ["path1"], "front": points}}
    content = {"format": 1, "family": "N", "num_stages": 4, "size": [96, 96], "tasks": tasks}
    (search / "front" / "front.json").write_text(json.dumps(content))
    options = ["--quick", "--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["budgets.py", str(search), *options])
    budgets.main()
    (row,) = json.loads((tmp_path / "out.json").read_text())[
        "Networks of the front by their FLOPs, and random ones beside them, over seeds [0]"
    ]
    assert row["network"] == dense.text(", ") and row["rivals"] == 1
    assert abs(row["their MFLOPs"] / row["MFLOPs"] - 1) <= 0.05
    kept = json.loads((tmp_path / "runs" / "quick" / "results" / "trained_det_digits_light.json").read_text())
    assert len(kept) == 2
    capsys.readouterr()
    budgets.main()
    assert "seed 0:" not in capsys.readouterr().out  # nothing was trained again
