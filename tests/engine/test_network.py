"""A run's folder describes its model: network.json is there from the start, and with a checkpoint it is enough."""

import json
import shutil

import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.config import find_config, load_cfg
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.engine.recipes.models import searched_network, searched_topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.zoo import create_model

TOPOLOGY = Topology([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
NAMES = ("ant", "bee", "7")


@pytest.fixture
def run(tmp_path):
    """Writes the folder of a run that has just started, and of its model's weights one checkpoint."""

    def write(task="cls", *options, checkpoint="model_0000001.pth"):
        search, folder = tmp_path / "search", tmp_path / "run"
        search.mkdir()
        folder.mkdir()
        entry = {"topology": TOPOLOGY, "outputs": ["path1", "path3"]}
        save_topologies(search / "topologies.json", "N", 3, (64, 64), {task: entry})
        opts = ["MODEL.FBNETV5.TOPOLOGY", search / "topologies.json", "INPUT.MIN_SIZE_TEST", 64]
        cfg = load_cfg(find_config(f"{task}/{task}_digits.yaml"), list(map(str, [*opts, *options])))
        recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
        network = searched_network(cfg, NAMES)
        network.write(folder, recipe.kind)
        torch.manual_seed(0)
        model = network.build(recipe.kind).eval()
        torch.save({"model": model.state_dict()}, folder / checkpoint)
        return folder, model

    return write


def edited(folder, change):
    content = json.loads((folder / NETWORK_FILE).read_text())
    change(content)
    (folder / NETWORK_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_a_moved_run_predicts_without_the_search_and_before_it_has_ended(run, tmp_path, monkeypatch, task):
    head = {"cls": ("dropout", 0.3), "det": ("max_detections", 7), "seg": ("num_queries", 12)}[task]
    folder, model = run(task, f"MODEL.FBNETV5.HEAD.{head[0]}", head[1], "INPUT.MAX_SIZE_TEST", 99)
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(folder, elsewhere)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "search")
    monkeypatch.chdir(tmp_path)
    predictor = from_run("another/place")
    assert predictor.task == task and predictor.names == NAMES
    assert predictor.transform.short_side == 64
    assert predictor.transform.max_size == 99 and predictor.transform.crop is None
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (found,), (expected,) = predictor.predict([image]), model([predictor.sample(image)])
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items() if key != "boxes")


def test_the_newest_checkpoint_is_taken_and_another_by_name(run):
    folder, model = run()
    for number, value in ((2, 2.0), (11, 11.0)):
        state = {**model.state_dict(), "head.fc.bias": torch.full((3,), value)}
        torch.save({"model": state}, folder / f"model_{number:07d}.pth")
    assert from_run(str(folder)).model.head.fc.bias[0] == 11
    assert from_run(str(folder), str(folder / "model_0000002.pth")).model.head.fc.bias[0] == 2
    for file in folder.glob("model_*.pth"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"run .*: there is no checkpoint, such as model_final.pth"):
        from_run(str(folder))


def test_create_model_opens_a_run_and_takes_nothing_that_the_run_says_itself(run):
    folder, model = run()
    opened = create_model(folder)
    assert opened.training and opened.backbone.topology == model.backbone.topology
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(InputError, match="has its own num_classes; allowed is weights alone"):
        create_model(folder, 4)
    with pytest.raises(InputError, match="has its own dropout"):
        create_model(str(folder), dropout=0.1)


def test_a_run_that_goes_on_has_its_own_topology(run):
    folder, _ = run()
    cfg = load_cfg(find_config("cls/cls_digits.yaml"), ["MODEL.FBNETV5.TOPOLOGY", "nowhere.json"])
    with pytest.raises(FileNotFoundError, match="MODEL.FBNETV5.TOPOLOGY names nowhere.json"):
        searched_topology(cfg)
    cfg.OUTPUT_DIR = str(folder)
    assert searched_topology(cfg) == TOPOLOGY


def test_a_run_of_before_there_was_the_file_opens_with_its_topology_file(run):
    folder, model = run(checkpoint="model_final.pth")
    path = folder.parent / "search" / "topologies.json"
    cfg = load_cfg(find_config("cls/cls_digits.yaml"), ["MODEL.FBNETV5.TOPOLOGY", str(path)])
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / NETWORK_FILE).rename(folder / "model.json")
    assert from_run(str(folder)).names == NAMES
    for content in (
        "null",
        "[]",
        '{"task": "cls"}',
        '{"names": "abc"}',
        '{"names": [1, 2, 3]}',
        "{",
        "[" * 9999,
    ):
        (folder / "model.json").write_text(content)
        with pytest.raises(ValueError, match=r"model.json"):
            from_run(str(folder))


def test_a_users_family_is_imported_with_the_run(run, tmp_path):
    (tmp_path / "my_moved_family.py").write_text(
        "from d2go_fbnetv5.arch import build_family, register_family\n"
        "import dataclasses\n"
        "register_family(dataclasses.replace(build_family('N'), name='my_moved_family'))\n"
    )
    folder, _ = run()
    edited(folder, put(family="my_moved_family"))
    with pytest.raises(ValueError, match="family is 'my_moved_family'"):
        from_run(str(folder))
    edited(folder, put(imports=["my_moved_family"], import_folders=[str(tmp_path), "/gone"]))
    assert from_run(str(folder)).model.backbone.family.name == "my_moved_family"


def remove(key):
    return lambda content: content.pop(key)


def put(**values):
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(format=2), "format is 2, allowed is 1, which this version reads"),
        *((remove(key), f"{key} is missing") for key in ("model", "names", "family", "head", "images")),
        (remove("topology"), "a topology is a mapping"),
        (put(model="Oracle"), "unknown MODEL.META_ARCHITECTURE 'Oracle'; allowed are "),
        (put(model="MultitaskSearch"), "a MultitaskSearch is no model that predicts"),
        (put(model=None), "model is None"),
        (put(family="Z"), "family is 'Z'"),
        (put(family=["N"]), "family is"),
        (put(topology={"mask": [[1, 0]]}), "a topology of 2 paths"),
        (put(topology=[[1, 0, 0, 0]]), "a topology is a mapping"),
        (put(topology={"mask": [[0, 0, 0, 9]]}), "holds 0 and 1 only"),
        (put(names="abc"), "names is 'abc', allowed is a list of one text or more"),
        (put(names=[]), "names is"),
        (put(names=[1, 2, 3]), "names is"),
        (put(names=["ant", "bee"]), "'head.fc.weight' is"),
        (put(head=[]), "head is"),
        (put(head={"drop": 1}), "drop"),
        (put(head={"dropout": 2}), "option 'dropout' is 2"),
        (put(head={"dropout": "much"}), "dropout"),
        (put(head={"backbone": 1}), "backbone"),
        (put(imports="abc"), "imports is 'abc'"),
        (put(imports=["no_such_module_at_all"]), "there is no module 'no_such_module_at_all'"),
        (put(pixel_mean=[1, 2]), "pixel_mean is"),
        (put(pixel_std=[1, 0, 1]), "pixel_std is"),
        (put(pixel_std=[1, float("nan"), 1]), "pixel_std is"),
        (put(images=None), "images is None"),
        (put(images={"short_side": "64", "crop": None, "max_size": None}), "short_side is '64'"),
        (put(images={"short_side": 64, "crop": True, "max_size": None}), "crop is True"),
        (put(images={"short_side": 64, "crop": 65, "max_size": None}), "crop is 65"),
        (put(images={"short_side": 10**9, "crop": None, "max_size": None}), "short_side is 1000000000"),
    ],
)
def test_a_damaged_description_is_one_sentence(run, change, message):
    folder, _ = run()
    edited(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        from_run(str(folder))
    assert str(caught.value).startswith(f"run {folder}: ")


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b"{", b"", b"\xff\xfe", b"[" * 9999, b'"text"'])
def test_what_is_no_object_of_json_is_one_sentence(tmp_path, content):
    (tmp_path / NETWORK_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=NETWORK_FILE):
        Network.read(tmp_path)


def test_a_searchs_weights_are_no_models(run, tmp_path):
    folder, _ = run()
    supernet = Supernet("N", 3).state_dict()
    for name, state in (
        ("search", {f"supernet.{k}": v for k, v in supernet.items()}),
        ("supernet", supernet),
    ):
        torch.save({"model": state}, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="no weights for the head of a ImageClassifier; train"):
            from_run(str(folder), str(tmp_path / f"{name}.pth"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["head.fc.weight", "backbone.stage0.path0.0.bn.running_var"])
def test_weights_that_are_not_finite_are_refused(run, tmp_path, bad, key):
    folder, model = run()
    state = model.state_dict()
    state[key].flatten()[0] = bad
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=f"run .*bad.pth': '{key}' is not finite"):
        from_run(str(folder), str(tmp_path / "bad.pth"))


def test_a_budget_takes_the_best_network_of_a_front_that_costs_no_more(tmp_path):
    small, large = Topology([[0, 0, 0, 0]] * 2), Topology([[0, 1, 0, 0]] * 2)
    points = [
        {"topology": t.to_dict(), "loss": loss, "costs": {}} for t, loss in ((small, 0.5), (large, 0.4))
    ]
    path = tmp_path / "front.json"
    content = {"format": 1, "family": "N", "num_stages": 2, "size": [96, 96]}
    content["tasks"] = {"det": {"outputs": ["path2"], "front": points}}
    path.write_text(json.dumps(content))

    def configured(budget):
        opts = ["MODEL.FBNETV5.TOPOLOGY", str(path), "MODEL.FBNETV5.BUDGET", budget]
        cfg = load_cfg(find_config("det/det_digits.yaml"), opts)
        get_recipe(cfg.MODEL.META_ARCHITECTURE).validate(cfg, 1)
        return searched_topology(cfg)

    assert configured("{flops: 1.0e+9}") == large
    assert configured("{params: 10000}") == small
    with pytest.raises(InputError, match="TOPOLOGY: .*front.json: no network of det costs 9 flops or less"):
        configured("{flops: 9}")
    with pytest.raises(InputError, match="MODEL.FBNETV5.BUDGET.flops is 'few', allowed is a number over 0"):
        configured("{flops: few}")
