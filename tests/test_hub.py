"""Models as folders to share: the same model comes back, the card tells of it, and nothing in it is run."""

import hashlib
import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2go_fbnetv5 import create_model, from_pretrained, push_to_hub, save_pretrained
from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.config import get_cfg
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network
from d2go_fbnetv5.models import LiteRCNN
from d2go_fbnetv5.utils.errors import InputError

FOUND = Topology([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IMAGE = torch.arange(3 * 64 * 80).reshape(3, 64, 80).remainder(251).to(torch.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LiteRCNN(Backbone("N", FOUND, ("path1",)), 2, max_detections=7, score_threshold=0.0).eval()


@pytest.fixture
def run(tmp_path, model):
    """The folder of a finished training, as far as it is read here."""
    folder = tmp_path / "run"
    folder.mkdir()
    head = {"max_detections": 7, "score_threshold": 0.0}
    network = Network("LiteRCNN", "N", FOUND, ("cat", "dog"), head, MEAN, STD, EvalTransform(64, None, 128))
    network.write(folder, LiteRCNN)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "metrics.json").write_text('{"iteration": 9, "eval/AP": 0.4375, "eval/AP50": 0.75}\n')
    return folder


def test_the_very_model_comes_back_from_its_folder(run, model, tmp_path):
    folder = save_pretrained(run, tmp_path / "shared")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "card.json",
        "model.safetensors",
        NETWORK_FILE,
    ]
    (run / "model_final.pth").unlink()  # the search and the training may be gone
    opened = from_pretrained(folder)
    assert (opened.task, opened.names, opened.transform.max_size) == ("det", ("cat", "dog"), 128)
    sample = {"image": IMAGE, "image_id": 0, "height": 64, "width": 80}
    expected = model([sample])[0]
    assert len(expected["scores"]) == 7
    for other in (
        opened.model,
        create_model(folder).eval(),
        from_pretrained(save_pretrained(folder, folder)).model,
    ):
        found = other([sample])[0]
        assert found.keys() == expected.keys() and all(map(torch.equal, found.values(), expected.values()))


def test_half_precision_halves_the_file_and_computes_in_single(run, model, tmp_path):
    whole, half = save_pretrained(run, tmp_path / "whole"), save_pretrained(run, tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    opened = from_pretrained(half).model
    assert all(parameter.dtype == torch.float32 for parameter in opened.parameters())
    expected = model.state_dict()
    expected |= {name: p.detach().half().float() for name, p in model.named_parameters() if p.dim() > 1}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())


def test_the_card_tells_of_the_model_and_its_weights(run, tmp_path):
    folder = save_pretrained(run, tmp_path / "shared")
    card = (folder / "README.md").read_text()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for text in (
        "pipeline_tag: object-detection",
        "| AP | 0.4375 |",
        "2: cat, dog",
        "| blocks kept | 4 |",
        digest,
    ):
        assert text in card


def test_the_card_has_how_the_weights_came_about_and_no_folders_of_the_user(run, tmp_path):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, cfg.SEED = "/home/me/search/model_final.pth", str(run), 3
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN, cfg.MODEL_EMA.ENABLED = "LiteRCNN", ["cats_train"], True
    (run / "config.yaml").write_text(cfg.dump())
    with open(run / "metrics.json", "a") as file:
        file.write('{"iteration": 99, "eval/AP": 0.25, "eval/ema/AP": 0.5, "eval/ema/AP-cat": 0.75}\n')
    folder = save_pretrained(run, tmp_path / "shared", licence="Apache-2.0")
    card = json.loads((folder / "card.json").read_text())
    assert card["configuration"]["MODEL.WEIGHTS"] == "model_final.pth"
    assert card["configuration"]["DATASETS.TRAIN"] == ["cats_train"]
    assert not {"OUTPUT_DIR", "SOLVER.MAX_ITER"} & card["configuration"].keys()
    assert (card["seed"], card["iterations"], card["averaged"], card["licence"]) == (
        3,
        100,
        True,
        "Apache-2.0",
    )
    assert card["metrics"] == {"AP": 0.5}  # of the weights that are shared, the averaged ones
    assert str(run) not in (folder / "README.md").read_text()
    again = json.loads((save_pretrained(folder, tmp_path / "again") / "card.json").read_text())
    assert {**again, "sha256": ""} == {**card, "sha256": ""}
    other = save_pretrained(run, tmp_path / "other", weights=run / "model_final.pth")
    assert "metrics" not in json.loads((other / "card.json").read_text())  # they are of the newest checkpoint


def test_a_readme_of_somebody_else_is_left_alone(run, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README.md is there and is none of a saved model"):
        save_pretrained(run, tmp_path / "shared")
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["README.md"]


def test_nothing_is_run_that_a_folder_names(run, tmp_path):
    folder = save_pretrained(run, tmp_path / "shared")
    (tmp_path / "evil_of_hub.py").write_text("raise SystemExit('it ran')")
    content = json.loads((folder / NETWORK_FILE).read_text())
    content |= {"imports": ["evil_of_hub"], "import_folders": [str(tmp_path)]}
    (folder / NETWORK_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="imports names modules, which would be run; allowed: none"):
        from_pretrained(folder)
    assert "evil_of_hub" not in sys.modules


def test_a_model_that_needs_modules_is_not_shared(run, tmp_path, monkeypatch):
    (tmp_path / "mine_of_hub.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = json.loads((run / NETWORK_FILE).read_text())
    (run / NETWORK_FILE).write_text(json.dumps(content | {"imports": ["mine_of_hub"]}))
    with pytest.raises(InputError, match="needs the module mine_of_hub"):
        save_pretrained(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_weights_of_another_model_are_refused(run, tmp_path):
    folder = save_pretrained(run, tmp_path / "shared")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "path1" in name and name.endswith("weight"))
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
    for opening in (from_pretrained, create_model):
        with pytest.raises(
            InputError, match=r"model.safetensors has the SHA-256 \w+, allowed is that of card.json"
        ):
            opening(folder)
    (folder / "card.json").unlink()  # as of older versions
    with pytest.raises(InputError, match=name):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        from_pretrained(folder)


class Hub(types.ModuleType):
    """Stands in for huggingface_hub: a folder for each name."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder = folder

    def HfApi(self):  # noqa: N802
        return self

    def create_repo(self, repo_id, private, exist_ok):
        if repo_id.startswith("others/"):
            raise PermissionError("403: not yours")
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path):
        from shutil import copytree

        copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}"

    def snapshot_download(self, name, revision, allow_patterns):
        if not (self.folder / name).is_dir():
            raise ConnectionError("no\nnetwork")
        assert allow_patterns == [NETWORK_FILE, "model.safetensors", "card.json"] and revision in (None, "v1")
        return str(self.folder / name)


def test_a_model_goes_to_the_hub_and_comes_from_it(run, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert push_to_hub(run, "me/detector") == "https://hub/me/detector"
    found = from_pretrained("me/detector", revision="v1").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    with pytest.raises(
        InputError, match=r"others/x: cannot be put on the hub \(PermissionError: 403: not yours\)"
    ):
        push_to_hub(run, "others/x")
    with pytest.raises(InputError, match=r"cannot be fetched from the hub \(ConnectionError: no network\)"):
        from_pretrained("me/nothing")
    with pytest.raises(FileNotFoundError, match="there is no such folder, nor is it a name on the hub"):
        from_pretrained("./nowhere/at/all")
    with pytest.raises(InputError, match="allowed with the folder"):
        from_pretrained(run, revision="v1")


def test_without_huggingface_hub_it_is_said_how_to_get_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    for call in (lambda: push_to_hub(run, "me/detector"), lambda: from_pretrained("me/detector")):
        with pytest.raises(InputError, match=r"pip install 'd2go_fbnetv5\[hub\]'"):
            call()
