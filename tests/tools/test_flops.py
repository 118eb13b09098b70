import json

import pytest
from d2go_fbnetv5.tools.flops import main

from d2go_fbnetv5.arch import PATHS, Topology, block_costs
from d2go_fbnetv5.arch.topology_file import save_topologies


@pytest.fixture
def topology_file(tmp_path):
    path = tmp_path / "topologies.json"
    topology = Topology([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    entries = {
        "det": {"topology": topology, "outputs": ["path2"]},
        "cls": {"topology": topology, "outputs": ["path3"]},
    }
    save_topologies(path, "N", 3, (64, 96), entries)
    return path


def answer(capsys, *argv):
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("family", "size", "millions"),
    [("A", "224x224", 340.0), ("A_C", "224x224", 112.1), ("A_R", "160x160", 99.3)],
)
def test_published_stage0(capsys, family, size, millions):
    found = answer(capsys, "--family", family, "--size", size)
    assert found["stage0"]["flops"] == pytest.approx(millions * 1e6, rel=0.01)
    assert sum(found["stage0_partitions"][path]["flops"] for path in PATHS) == found["stage0"]["flops"]


def test_blocks_of_a(capsys):
    found = answer(capsys, "--family", "A", "--size", "224x224")
    assert (found["family"], found["size"]) == ("A", [224, 224])
    millions = [found["blocks"][path]["flops"] / 1e6 for path in PATHS]
    assert millions == pytest.approx([22.0, 19.8, 32.3, 38.4], rel=0.01)
    assert all(found["blocks"][path]["params"] > 0 for path in PATHS)


def test_network_of_a_task(capsys, topology_file):
    network = answer(capsys, "--topology", topology_file, "--task", "det")["network"]
    costs = block_costs("N", (64, 96))
    stage0, blocks = sum(costs.stage0), costs.blocks
    assert (network["task"], network["outputs"], network["num_stages"]) == ("det", ["path2"], 3)
    assert network["flops"] == stage0 + blocks[0] + blocks[1] + blocks[3]
    # Path 2 keeps no block, so its head sees Stage 0 alone, up to its third partition.
    assert network["flops_pruned"] == sum(costs.stage0[:3])
    assert (network["blocks_kept"], network["blocks_kept_pruned"]) == (3, 0)
    assert network["relative_cost"] == pytest.approx((blocks[0] + blocks[1] + blocks[3]) / (3 * sum(blocks)))
    assert network["relative_cost_pruned"] == 0
    assert 0 < network["params_pruned"] < network["params"]


def test_family_and_size_come_from_the_file_unless_given(capsys, topology_file):
    base = answer(capsys, "--topology", topology_file, "--task", "cls")
    assert (base["family"], base["size"]) == ("N", [64, 96])
    other = answer(capsys, "--topology", topology_file, "--task", "cls", "--family", "A", "--size", "128x256")
    assert (other["family"], other["size"]) == ("A", [128, 256])
    assert other["network"]["flops"] > base["network"]["flops"]


@pytest.fixture
def front(tmp_path):
    """A front.json of a detector's networks of no, one and two blocks of Path 1."""
    points = [
        {"topology": Topology([[0, n > 0, 0, 0], [0, n > 1, 0, 0]]).to_dict(), "loss": 0.5 - n / 10}
        for n in range(3)
    ]
    tasks = {"det": {"outputs": ["path1"], "front": points}}
    path = tmp_path / "front.json"
    path.write_text(
        json.dumps({"format": 1, "family": "N", "num_stages": 2, "size": [96, 96], "tasks": tasks})
    )
    return path


def test_the_network_of_a_front_within_a_budget_is_counted_alone_and_with_its_head(capsys, front):
    costs = block_costs("N", (96, 96))
    one = sum(costs.stage0) + costs.blocks[1]  # a block's fusion reads all paths
    network = answer(capsys, "--topology", front, "--budget", f"flops={one + 1}", "params=1e9")["network"]
    assert (network["blocks_kept"], network["flops_pruned"]) == (1, one)
    assert answer(capsys, "--topology", front)["network"]["blocks_kept"] == 2
    whole = answer(
        capsys, "--topology", front, "--budget", f"flops={one}", "--with-head", "--num-classes", "10"
    )
    assert whole["model"] == "FBNetV5-N-DET" and whole["size"] == [96, 96]
    assert whole["parts"]["BB"] == one and whole["total"] == sum(whole["parts"].values()) > one
    name = ("--model", "FBNetV5-N-DET", "--size", "96x96", "--num-classes", "10", "--topology", front)
    assert answer(capsys, *name, "--budget", f"flops={one}") == whole


def test_table(capsys, topology_file):
    assert (
        main(["--topology", str(topology_file), "--task", "cls", "--family", "A", "--size", "224x224"]) == 0
    )
    text = capsys.readouterr().out
    assert "Family A at 224x224" in text
    for words in ("Stage 0", "340M", "block on Path 3", "38.4M", "cls: 3 blocks", "cls, pruned: "):
        assert words in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--family", "Z"], "unknown family 'Z'"),
        (["--size", "224"], "--size 224: expected HEIGHTxWIDTH"),
        (["--size", "0x224"], "--size 0x224"),
        (["--size", "8x8"], "(8, 8)"),
        (["--task", "det"], "--task det needs --topology FILE"),
        (["--topology", "FILE"], "--task is missing; "),
        (["--topology", "FILE", "--task", "seg"], "no task 'seg'; available: det, cls"),
        (["--topology", "nowhere.json"], "nowhere.json"),
        (
            ["--topology", "FRONT", "--budget", "flops=9"],
            "no network of det costs 9 flops or less, the least is",
        ),
        (["--topology", "FRONT", "--budget", "joules=9"], "budget of 'joules', allowed are flops, params"),
        (
            ["--topology", "FRONT", "--budget", "flops"],
            "--budget flops: expected COST=MOST, such as flops=9e6",
        ),
        (
            ["--topology", "FRONT", "--budget", "flops=few"],
            "--budget flops is 'few', allowed is a number over 0",
        ),
        (["--topology", "FRONT", "--family", "A"], "a front of family N, allowed is the network's own, A"),
        (["--topology", "FRONT", "--task", "seg"], "no task 'seg'; available: det"),
        (["--budget", "flops=9e6"], "--budget flops=9e6 needs --topology FILE"),
        (["--with-head"], "--with-head needs --topology FILE"),
        (["--num-classes", "3"], "--num-classes 3 needs --model NAME or --with-head"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(capsys, topology_file, front, argv, message):
    places = {"FILE": str(topology_file), "FRONT": str(front)}
    assert main([places.get(word, word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("flops: ")
    assert err.count("\n") == 1


def test_model_is_counted_by_its_published_parts(capsys, tmp_path):
    found = answer(capsys, "--model", "FBNetV5-A_C-DET", "--size", "213x320")
    assert (found["size"], found["padded_size"]) == ([213, 320], [224, 320])
    assert list(found["parts"]) == ["BB", "RPN", "ROI"]
    assert found["total"] == sum(found["parts"].values())
    assert found["total"] == pytest.approx(733e6, rel=0.015)
    assert found["parameters"] > 0 and "average" not in found

    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"images": [{"height": 426, "width": 640}, {"height": 640, "width": 426}]}))
    average = answer(capsys, "--model", "FBNetV5-A_C-DET", "--size", "213x320", "--coco-sizes", coco)
    # Both are 213 x 320 at that scale, upright or not, so the average is the total itself.
    assert average["average"] == pytest.approx(found["total"], rel=1e-6)
    assert average["average_images"] == 2
    pairs = tmp_path / "pairs.json"
    pairs.write_text("[[426, 640], [640, 426]]")
    again = answer(capsys, "--model", "FBNetV5-A_C-DET", "--size", "213x320", "--coco-sizes", pairs)
    assert again == average


def test_model_uses_a_topology_of_ones_own(capsys, topology_file):
    zoo = answer(capsys, "--model", "FBNetV5-N-CLS")
    own = answer(capsys, "--model", "FBNetV5-N-CLS", "--topology", topology_file)
    assert zoo["size"] == [96, 96]
    assert own["parts"]["head"] == zoo["parts"]["head"] and own["parts"]["BB"] < zoo["parts"]["BB"]
    assert main(["--model", "FBNetV5-N-SEG", "--size", "96x96"]) == 0
    assert "transformer decoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "FBNetV5-Z-DET"], "unknown model 'FBNetV5-Z-DET'"),
        (["--model", "FBNetV5-N-DET", "--family", "A"], "--family A"),
        (["--model", "FBNetV5-N-DET", "--topology", "nowhere.json"], "nowhere.json"),
        (
            ["--model", "FBNetV5-N-DET", "--coco-sizes", "nowhere.json"],
            "--coco-sizes nowhere.json does not exist",
        ),
        (["--model", "FBNetV5-N-DET", "--coco-sizes", "BAD"], "expected COCO annotations"),
        (["--model", "FBNetV5-N-DET", "--coco-resize", "224"], "--coco-resize 224: expected"),
        (["--coco-sizes", "nowhere.json"], "needs --model"),
    ],
)
def test_wrong_model_input_is_one_sentence(capsys, tmp_path, argv, message):
    bad = tmp_path / "bad.json"
    bad.write_text('{"pictures": []}')
    assert main([str(bad) if word == "BAD" else word for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
