import json
import re

import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology, block_costs
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.models import ImageClassifier, LiteDepth, LiteMaskFormer, LiteRCNN
from d2go_fbnetv5.models.reconstructions import builtin_topology
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.utils.formatting import format_least
from d2go_fbnetv5.zoo import create_model, list_models

IMAGE = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "image_id": 0}


def test_names():
    names = list_models()
    assert len(names) == len(set(names)) == 20
    assert {"FBNetV5-A_C-DET", "FBNetV5-A-CLS", "FBNetV5-F-SEG"} <= set(names)


def test_every_name_builds_its_model():
    kinds = {
        "CLS": (ImageClassifier, 1000),
        "SEG": (LiteMaskFormer, 150),
        "DET": (LiteRCNN, 80),
        "DEPTH": (LiteDepth, 1),
    }
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        _, family, task = name.split("-")
        assert type(model) is kinds[task][0] and model.num_classes == kinds[task][1]
        assert model.backbone.family.name == family


@pytest.mark.parametrize(
    "task,outputs", [("CLS", {"path3"}), ("SEG", {"path1", "path3"}), ("DET", {"path1"})]
)
def test_built_in_topologies_have_no_dead_block(task, outputs):
    topology = builtin_topology(task)
    assert topology.num_stages == 7
    assert topology.prune(outputs) == topology
    assert len([path for stage, path in topology.live_nodes(outputs) if stage == 0]) == 4


def test_seg_climbs_as_a_unet_does():
    mask = builtin_topology("SEG").mask
    highest = [row.index(True) for row in mask[:6]]
    lowest = [3 - row[::-1].index(True) for row in mask[:6]]
    assert highest[0] == 3 and highest[-1] == 0
    assert sum(h + low for h, low in zip(highest[3:], lowest[3:], strict=True)) < sum(
        h + low for h, low in zip(highest[:3], lowest[:3], strict=True)
    )


@pytest.mark.parametrize("name", ["FBNetV5-Z-DET", "FBNetV5-A-POSE", "resnet50", ""])
def test_unknown_model_names_what_exists(name):
    with pytest.raises(ValueError, match="unknown model.*FBNetV5-A_C-CLS.*FBNetV5-F-DET"):
        create_model(name)


def test_unknown_option():
    with pytest.raises(ValueError, match="FBNetV5-N-CLS.*no_such_option"):
        create_model("FBNetV5-N-CLS", 4, no_such_option=1)
    with pytest.raises(ValueError, match="num_classes is 0"):
        create_model("FBNetV5-N-CLS", 0)
    with pytest.raises(ValueError, match="unknown task 'cls'; allowed are CLS, SEG, DET"):
        builtin_topology("cls")


def test_one_topology_file_makes_all_tasks_at_two_sizes(tmp_path):
    generator = torch.Generator().manual_seed(3)
    entries = {
        task: {"topology": Topology.random(5, generator=generator), "outputs": ["path2"]}
        for task in ("cls", "det", "seg")
    }
    path = tmp_path / "topologies.json"
    save_topologies(path, "A", 5, (224, 224), entries)
    for family in ("N", "A_C"):
        for task, entry in entries.items():
            model = create_model(f"FBNetV5-{family}-{task.upper()}", 4, topology=path)
            assert model.backbone.topology == entry["topology"].prune(model.in_features)
            with torch.no_grad():
                assert len(model.eval()([IMAGE])) == 1


def test_topology_file_without_the_task(tmp_path):
    path = tmp_path / "topologies.json"
    save_topologies(path, "A", 7, (224, 224), {"cls": {"topology": Topology.full(7), "outputs": ["path3"]}})
    with pytest.raises(ValueError, match="no task 'det'; available: cls"):
        create_model("FBNetV5-N-DET", 4, topology=path)
    with pytest.raises(FileNotFoundError, match="missing.json"):
        create_model("FBNetV5-N-DET", 4, topology=tmp_path / "missing.json")


def test_a_model_by_name_is_picked_of_a_front_by_budget(tmp_path):
    topologies = Topology.full(1), Topology([[0, 0, 0, 0]])
    points = [{"topology": t.to_dict(), "loss": loss} for t, loss in zip(topologies, (0.1, 0.2), strict=True)]
    tasks = {"seg": {"outputs": ["path2"], "front": points}}
    content = {"format": 1, "family": "N", "num_stages": 1, "size": [96, 96], "tasks": tasks}
    path = tmp_path / "front.json"
    path.write_text(json.dumps(content))
    costs = block_costs("N", (96, 96))
    least = costs.network(topologies[1], ["path1", "path3"])  # of what Lite MaskFormer reads
    for budget, expected in (({}, 0), ({"flops": 1e12}, 0), ({"flops": str(least)}, 1)):
        model = create_model("FBNetV5-N-SEG", 4, path, budget=budget)
        assert model.backbone.topology == topologies[expected].prune(model.in_features)
    for name, topology, message in (
        ("FBNetV5-N-SEG", path, f"costs 9 flops or less, the least is {re.escape(format_least(least))}"),
        ("FBNetV5-A-SEG", path, "a front of family N, allowed is the network's own, A"),
        ("FBNetV5-N-DET", path, "no task 'det'; available: seg"),
        ("FBNetV5-N-SEG", None, "a budget is given, allowed with the path of a front.json as topology alone"),
    ):
        with pytest.raises(ValueError, match=message):
            create_model(name, 4, topology, budget={"flops": 9})
    with pytest.raises(ValueError, match="budget flops is -1, allowed is a number over 0"):
        create_model("FBNetV5-N-SEG", 4, path, budget={"flops": -1})


def same_weights(ours, theirs):
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_of_a_model(tmp_path, wrapped):
    trained = create_model("FBNetV5-N-SEG", 4)
    path = tmp_path / "model.pth"
    torch.save({"model": trained.state_dict(), "iteration": 3} if wrapped else trained.state_dict(), path)
    model = create_model("FBNetV5-N-SEG", 4, weights=path)
    assert same_weights(model.state_dict(), trained.state_dict())
    model = create_model("FBNetV5-N-SEG", 4)
    load_weights(model, path)
    assert same_weights(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("prefix", ["supernet.", ""])
def test_weights_of_a_supernet(tmp_path, prefix):
    supernet = Supernet("N", 7)
    state = {prefix + name: value for name, value in supernet.state_dict().items()}
    if prefix:
        state["tasks.cls.fc.weight"] = torch.zeros(2, 2)
    path = tmp_path / "search.pth"
    torch.save({"model": state}, path)
    model = create_model("FBNetV5-N-DET", 4)
    head = {name: value.clone() for name, value in model.rpn.state_dict().items()}
    with pytest.raises(ValueError, match="no weights for the head of a LiteRCNN; train the model first"):
        load_weights(model, path)
    load_weights(model, path, supernet=True)
    assert same_weights(model.backbone.state_dict(), supernet.state_dict())
    assert same_weights(head, model.rpn.state_dict())


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(create_model("FBNetV5-N-CLS", 4).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"model.pth.*'head.fc.weight' is \(4, 192\) in the file, \(5, 192\)"
    ):
        create_model("FBNetV5-N-CLS", 5, weights=path)
    with pytest.raises(ValueError, match="not of this model.*missing.*unknown"):
        create_model("FBNetV5-N-DET", 4, weights=path)
    torch.save({"model": {f"supernet.{k}": v for k, v in Supernet("N", 7).state_dict().items()}}, path)
    with pytest.raises(ValueError, match="model.pth.*stage0.*family A"):
        create_model("FBNetV5-A-CLS", 4, weights=path)


def test_weights_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.pth"):
        create_model("FBNetV5-N-CLS", 4, weights=tmp_path / "no.pth")
    path = tmp_path / "bad.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="bad.pth.*not a checkpoint"):
        create_model("FBNetV5-N-CLS", 4, weights=path)
    torch.save({"iteration": 3}, path)
    with pytest.raises(ValueError, match="no named tensors"):
        create_model("FBNetV5-N-CLS", 4, weights=path)
