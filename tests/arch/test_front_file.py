import json
import re

import pytest

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.front_file import pick_topology

NONE, ONE, TWO = (Topology([[0, n > 0, 0, 0], [0, n > 1, 0, 0]]) for n in range(3))
COSTS = block_costs("N", (96, 96))


@pytest.fixture
def front(tmp_path):
    points = [
        {"topology": t.to_dict(), "loss": loss, "costs": {"phone.csv": ms}, "metrics": {}}
        for t, loss, ms in ((NONE, 0.5, 1.0), (ONE, 0.4, 2.0), (TWO, 0.3, 3.0))
    ]
    content = {"format": 1, "family": "N", "size": [96, 96], "tasks": {"det": {"front": points}}}
    path = tmp_path / "front.json"
    path.write_text(json.dumps(content))
    return path


def pick(front, outputs=("path1",), task="det", family="N", **budget):
    return pick_topology(front, task, budget, family, outputs)


def test_the_best_within_the_budget_is_picked(front):
    flops = [COSTS.network(t, ["path1"]) for t in (NONE, ONE, TWO)]
    assert pick(front, flops=flops[0]) == NONE
    assert pick(front, flops=flops[1] + 1) == ONE
    assert pick(front, flops=1e9) == pick(front, params=1e9) == TWO
    assert pick_topology(front, "det", {"phone.csv": 2.5, "flops": 1e9}, "N", ["path1"]) == ONE


def test_a_head_that_reads_more_paths_has_less_left_for_blocks(front):
    most = COSTS.network(NONE, ["path1"])
    assert COSTS.network(NONE, ["path1", "path3"]) > most
    assert pick(front, flops=most) == NONE
    with pytest.raises(ValueError, match=re.escape(f"costs {most:g} flops or less, the least is")):
        pick(front, outputs=("path1", "path3"), flops=most)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"flops": 1.0},
            f"no network of det costs 1 flops or less, the least is {COSTS.network(NONE, ['path1']):g}",
        ),
        ({"joules": 1.0}, "budget of 'joules', allowed are"),
        ({"task": "seg", "flops": 1e9}, "no task 'seg'; available: det"),
        ({"family": "A", "flops": 1e9}, "a front of family N, allowed is the network's own, A"),
    ],
)
def test_what_cannot_be_met_is_said_in_a_sentence(front, asked, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        pick(front, **asked)
    assert str(error.value).startswith(str(front))


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"family": "N", "size": [96, 96], "tasks": {"det": {"front": [1]}}}']
)
def test_a_broken_front_is_named(front, text):
    front.write_text(text)
    with pytest.raises(ValueError, match="front.json"):
        pick(front, flops=1e9)
