import pytest
import torch
from d2go_fbnetv5.tools.convert_weights import main
from safetensors import safe_open

from d2go_fbnetv5 import MultitaskSearch, Supernet, build_family
from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.models.weights import load_search_weights
from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.utils.files import SIGNATURE


@pytest.fixture
def checkpoint(tmp_path):
    """A file such as mobile_cv's trainer writes, of our family N."""
    family = build_family("N")
    weights = {}
    for stage, path in ((1, 0), (2, 1), (3, 2), (4, 3)):
        for block, module in enumerate(family.build_partition(path)):
            for key, value in module.state_dict().items():
                key = key.replace("se.reduce", "se.se.0.conv").replace("se.expand", "se.se.1")
                weights[f"module.backbone.stages.xif{stage}_{block}.{key}"] = torch.full_like(value, 3)
    for key, value in family.build_pool().state_dict().items():
        key = key.replace("pwl.", "pwl.conv.")
        weights[f"module.backbone.stages.xif5_0.{key}"] = torch.full_like(value, 5)
    torch.save({"state_dict": weights, "model_ema": None}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def test_a_search_starts_from_the_converted_weights(checkpoint, tmp_path, capsys):
    out = tmp_path / "ours.pth"
    assert main([str(checkpoint), str(out), "--family", "N"]) == 0
    assert "173 weights of" in capsys.readouterr().out
    supernet = Supernet("N", 1)
    head = build_task(
        "cls", supernet.channels, DatasetInfo(class_names=("a", "b")), pool_channels=192, expansion=3
    )
    search = MultitaskSearch(supernet, [head])
    weights = torch.load(out, weights_only=True)["model"]
    missing, unexpected = search.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith(("supernet.stage0", "tasks.cls.pool"))]
    assert supernet.stage0["path2"][0].dw.conv.weight.unique().tolist() == [3]
    assert head.pool.pw.conv.weight.unique().tolist() == [5]


def test_wrong_input_is_one_sentence(checkpoint, tmp_path, capsys):
    for args in ([str(checkpoint), "out.pth", "--family", "A"], ["none.pth", "out.pth", "--family", "A"]):
        assert main(args) == 2
        error = capsys.readouterr().err
        assert error.startswith("convert_weights: ")
        assert error.count("\n") == 1
    assert main([str(checkpoint), str(tmp_path / "no" / "out.pth"), "--family", "N"]) == 2


def test_the_weights_of_a_search_go_on_without_its_training(tmp_path, capsys):
    """Through the file, in either format, another search gets the very weights, and none of the probabilities."""
    info = DatasetInfo(class_names=("a", "b"))

    def search():
        supernet = Supernet("N", 1)
        return MultitaskSearch(supernet, [build_task("cls", supernet.channels, info)])

    trained = search()
    trained.distribution.probs.data.fill_(0.9)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("SEED: 7\n")
    assert main([str(folder), str(tmp_path / "w.pth")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    RunCheckpointer(trained, folder).save("model_final", iteration=3)
    for name in ("w.safetensors", "w.pth"):
        assert main([str(folder), str(tmp_path / name)]) == 0
        fresh = search()
        load_search_weights(fresh, tmp_path / name)
        ours, theirs = fresh.state_dict(), trained.state_dict()
        assert all(
            torch.equal(ours[key], theirs[key]) for key in ours if key.startswith(("supernet", "tasks"))
        )
        assert fresh.distribution.probs.unique().tolist() == [0.5]
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        notes = {"config": "SEED: 7\n", "checkpoint": "model_final.pth"}
        assert file.metadata() == {"author": SIGNATURE, **notes}


def test_a_mobile_cv_checkpoint_needs_its_family(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), str(tmp_path / "out.pth")]) == 2
    assert "--family is missing" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["timm/fbnetv3_b.ra2_in1k", "hf-hub:user/fbnetv3_b"])
def test_a_hub_that_cannot_be_reached_is_one_sentence(source, tmp_path, capsys, monkeypatch):
    timm = pytest.importorskip("timm")
    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        raise ConnectionError("no\nroute to huggingface.co")

    monkeypatch.setattr(timm, "create_model", create_model)
    assert main([source, str(tmp_path / "out.pth"), "--family", "B_TIMM"]) == 2
    assert asked == [(source.removeprefix("timm/"), True)]
    assert capsys.readouterr().err == (
        f"convert_weights: {source}: its weights cannot be fetched (ConnectionError: no route to huggingface.co); "
        "a file of them will do\n"
    )
