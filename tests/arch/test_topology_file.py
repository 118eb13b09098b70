import json
import re

import pytest
import torch

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies, save_topologies
from d2go_fbnetv5.utils.formatting import format_least


@pytest.fixture
def topology():
    return Topology.random(5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def content(tmp_path, topology):
    """A correct file's content, to be spoilt."""
    path = tmp_path / "good.json"
    probs = [[0.25] * 4] * 5
    entry = {
        "topology": topology,
        "outputs": ("path2",),
        "probabilities": probs,
        "flops": 12.5,
        "metrics": {"AP": 0.5},
    }
    save_topologies(path, "A", 5, (224, 192), {"det": entry})
    return json.loads(path.read_text())


def load(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_topologies(path)


def test_round_trip(tmp_path, topology):
    path = tmp_path / "topologies.json"
    entries = {
        "cls": {
            "topology": topology,
            "probabilities": [[0.1, 0.9, 0.5, 1e-05]] * 5,
            "outputs": ("path1", "path3"),
            "flops": 123456789.0,
            "flops_pruned": 1e6,
            "relative_cost": 0.5,
            "relative_cost_pruned": 0.25,
            "blocks_kept": topology.num_kept,
            "blocks_kept_pruned": 1,
            "metrics": {"top1": 0.75},
            "random": {"topologies": [Topology.full(5)], "metrics": [0.5]},
        },
        "horizon [1,  2]": {"topology": Topology.full(5), "outputs": ["path0"]},
    }
    save_topologies(path, "A_C", 5, (224, 192), entries)
    file = load_topologies(path)
    assert (file.family, file.num_stages, file.size) == ("A_C", 5, (224, 192))
    assert list(file.tasks) == list(entries)
    entry = file.task("cls")
    assert entry.topology == topology
    assert entry.outputs == ("path1", "path3")
    assert entry.probabilities == ((0.1, 0.9, 0.5, 1e-05),) * 5
    assert (entry.flops, entry.flops_pruned) == (123456789.0, 1e6)
    assert (entry.relative_cost, entry.relative_cost_pruned) == (0.5, 0.25)
    assert (entry.blocks_kept, entry.blocks_kept_pruned) == (topology.num_kept, 1)
    assert entry.metrics == {"top1": 0.75}
    assert Topology.from_dict(entry.random["topologies"][0]) == Topology.full(5)
    bare = file.task("horizon [1,  2]")
    assert (bare.probabilities, bare.flops, bare.metrics) == (None, None, {})


def test_metric_without_a_sample_is_null(tmp_path, topology):
    path = tmp_path / "topologies.json"
    entry = {"topology": topology, "outputs": ["path0"], "metrics": {"AP": float("nan")}}
    save_topologies(path, "A", 5, (64, 64), {"det": entry})
    assert "NaN" not in path.read_text()
    assert load_topologies(path).task("det").metrics == {"AP": None}


def test_unknown_task_names_those_there_are(tmp_path, content):
    file = load(tmp_path, content)
    with pytest.raises(ValueError, match=r"bad\.json: no task 'seg'; available: det"):
        file.task("seg")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_topologies(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(format=2), "format is 2, allowed is 1"),
        (lambda c: c.pop("family"), "family is missing, allowed is a family's name"),
        (lambda c: c.update(family=""), "family is ''"),
        (lambda c: c.update(num_stages=6), r"tasks.det.topology is of 5 x 4 blocks, allowed is 6 stages"),
        (lambda c: c.update(num_stages=True), "num_stages is True, allowed is a count of 1 to 100"),
        (lambda c: c.update(size=[224]), r"size is \[224\], allowed is \[height, width\]"),
        (lambda c: c.update(tasks={}), "tasks is {}, allowed is an object with at least one task"),
        (lambda c: c["tasks"].update(det=[]), r"tasks.det is \[\], allowed is an object"),
        (lambda c: c["tasks"]["det"].pop("topology"), "tasks.det.topology is missing"),
        (lambda c: c["tasks"]["det"]["topology"].update(mask=[[2]]), "tasks.det.topology: .*2"),
        (
            lambda c: c["tasks"]["det"]["topology"].update(num_stages=4),
            "tasks.det.topology: .*num_stages is 4",
        ),
        (lambda c: c["tasks"]["det"].update(outputs=["path4"]), r"det.outputs is \['path4'\], .*path3"),
        (lambda c: c["tasks"]["det"].update(outputs=[["path3"]]), r"det.outputs is \[\['path3'\]\]"),
        (lambda c: c["tasks"]["det"].update(outputs="path3"), "tasks.det.outputs is 'path3'"),
        (lambda c: c["tasks"]["det"].update(probabilities=[[0.5] * 4] * 3), r"0.5]], allowed is 5 x 4"),
        (
            lambda c: c["tasks"]["det"]["probabilities"][1].__setitem__(2, 1.5),
            r"probabilities is .*1.5.*, allowed is 5 x 4 numbers from 0 to 1",
        ),
        (lambda c: c["tasks"]["det"].update(flops=-1), "det.flops is -1, allowed is a number of at least 0"),
        (lambda c: c["tasks"]["det"].update(metrics=3), "tasks.det.metrics is 3, allowed is an object"),
        (lambda c: c["tasks"]["det"]["metrics"].update(AP="a"), "tasks.det.metrics.AP is 'a'"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, spoil, message):
    spoil(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON, line 1"),
        ("[]", "expected an object of keys and values, found a list"),
        ("", "not JSON"),
    ],
)
def test_no_object(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_binary_file_and_folder(tmp_path):
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="not a text file"):
        load_topologies(tmp_path / "image.json")
    with pytest.raises(ValueError, match="is a folder"):
        load_topologies(tmp_path)


def test_wrong_entry_leaves_the_old_file(tmp_path, topology):
    path = tmp_path / "topologies.json"
    save_topologies(path, "A", 5, (64, 64), {"det": {"topology": topology, "outputs": ["path2"]}})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="allowed is 7 stages"):
        save_topologies(path, "A", 7, (64, 64), {"det": {"topology": topology, "outputs": ["path2"]}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["topologies.json"]


NONE, ONE, TWO = (Topology([[0, n > 0, 0, 0], [0, n > 1, 0, 0]]) for n in range(3))
COSTS = block_costs("N", (96, 96))


@pytest.fixture
def front(tmp_path):
    """A front.json of three networks, the worst first; a block takes 5 ms, a part of Stage 0 one."""
    points = [
        {
            "topology": t.to_dict(),
            "loss": loss,
            "costs": {"flops": COSTS.network(t, ["path1"])},
            "metrics": {},
        }
        for t, loss in ((NONE, 0.5), (ONE, 0.4), (TWO, 0.3))
    ]
    content = {
        "format": 1,
        "family": "N",
        "num_stages": 2,
        "size": [96, 96],
        "tables": {"phone.csv": {"stage0": [1, 1, 1, 1], "blocks": [5, 5, 5, 5]}},
        "tasks": {"det": {"outputs": ["path1"], "front": points}},
    }
    path = tmp_path / "front.json"
    path.write_text(json.dumps(content))
    return path


def pick(front, outputs=None, task="det", family="N", **budget):
    return load_topologies(front).task(task, budget, family, outputs).topology


def test_of_a_front_the_best_within_the_budget_is_picked(front):
    flops = [COSTS.network(t, ["path1"]) for t in (NONE, ONE, TWO)]
    assert pick(front, flops=flops[0]) == NONE
    assert pick(front, flops=flops[1] + 1) == ONE
    assert pick(front) == pick(front, flops=1e9) == pick(front, params=1e9) == TWO
    file = load_topologies(front)
    assert file.task("det", {"phone.csv": 9.0, "flops": 1e9}) == file.task("det", {"flops": flops[1]})
    assert file.task("det") == file.tasks["det"] and file.task("det").flops_pruned == flops[2]


def test_a_head_that_reads_more_paths_has_less_left_for_blocks(front):
    most = COSTS.network(NONE, ["path1"])
    assert COSTS.network(NONE, ["path1", "path3"]) > most
    assert pick(front, flops=most) == NONE
    with pytest.raises(ValueError, match=re.escape(f"costs {most:g} flops or less, the least is")):
        pick(front, outputs=("path1", "path3"), flops=most)
    assert pick(front, outputs=["path2"], **{"phone.csv": 3.0}) == TWO  # of which Path 2 needs no block
    with pytest.raises(ValueError, match="no network of det costs 2.5 phone.csv or less, the least is 3"):
        pick(front, outputs=["path2"], **{"phone.csv": 2.5})


def test_a_file_of_one_network_a_task_is_held_to_a_budget_too(tmp_path):
    path = tmp_path / "topologies.json"
    save_topologies(path, "N", 2, (96, 96), {"det": {"topology": ONE, "outputs": ["path1"]}})
    flops = COSTS.network(ONE, ["path1"])
    assert pick(path, flops=flops) == pick(path, family="A") == ONE
    least = re.escape(f"the least is {format_least(flops)}")
    with pytest.raises(ValueError, match=f"no network of det costs 5 flops or less, {least}"):
        pick(path, flops=5.0)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"flops": 1.0},
            f"no network of det costs 1 flops or less, the least is {format_least(COSTS.network(NONE, ['path1']))}",
        ),
        ({"joules": 1.0}, "budget of 'joules', allowed are flops, params, phone.csv"),
        ({"task": "seg", "flops": 1e9}, "no task 'seg'; available: det"),
        ({"family": "A", "flops": 1e9}, "a front of family N, allowed is the network's own, A"),
        ({"family": "A"}, "a front of family N, allowed is the network's own, A"),
    ],
)
def test_what_cannot_be_met_is_said_in_a_sentence(front, asked, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        pick(front, **asked)
    assert str(error.value).startswith(str(front))


def test_budgets_that_are_met_apart_and_not_together_are_named(front):
    content = json.loads(front.read_text())
    for place, name in enumerate(("a.csv", "b.csv")):
        blocks = [5 * (path == place) for path in range(4)]
        content["tables"][name] = {"stage0": [1, 1, 1, 1], "blocks": blocks}
        mask = [[int(path == place) for path in range(4)], [0, 0, 0, 0]]
        content["tasks"]["det"]["front"][place]["topology"] = Topology(mask).to_dict()
    del content["tasks"]["det"]["front"][2]
    front.write_text(json.dumps(content))
    paths = ("path0", "path1")
    assert pick(front, paths, **{"a.csv": 9.0, "b.csv": 4.0}) == Topology([[1, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="no network of det stays within all of"):
        pick(front, paths, **{"a.csv": 8.0, "b.csv": 8.0})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(tables=[]), r"tables is \[\], allowed is an object"),
        (lambda c: c["tables"].update({"phone.csv": {}}), "tables.phone.csv.stage0 is missing, allowed is 4"),
        (lambda c: c["tables"]["phone.csv"].update(blocks=[1]), r"blocks is \[1\], allowed is 4 numbers"),
        (lambda c: c["tasks"]["det"].update(front=[]), r"tasks.det.front is \[\], allowed is a list"),
        (lambda c: c["tasks"]["det"].pop("outputs"), r"tasks.det.front\[0\].outputs is None"),
        (lambda c: c["tasks"]["det"]["front"].append(1), r"tasks.det.front\[3\] is 1, allowed is an object"),
        (lambda c: c["tasks"]["det"]["front"][1].pop("loss"), r"det.front\[1\].loss is missing"),
        (lambda c: c["tasks"]["det"]["front"][1].pop("topology"), r"front\[1\].topology is missing"),
        (
            lambda c: c["tasks"]["det"]["front"][1].update(costs=3),
            r"front\[1\].costs is 3, allowed is an object",
        ),
    ],
)
def test_a_broken_front_is_named(front, spoil, message):
    content = json.loads(front.read_text())
    spoil(content)
    front.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        load_topologies(front)
    assert str(error.value).startswith(str(front))
