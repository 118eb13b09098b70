import pytest
import torch
from d2go_fbnetv5.tools.convert_weights import main

from d2go_fbnetv5 import MultitaskSearch, Supernet, build_family
from d2go_fbnetv5.tasks import DatasetInfo, build_task


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
    assert "of family N" in capsys.readouterr().out
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
