"""Tables 2, 6 and 7: the published FLOPs."""

import json
from pathlib import Path

import pytest
import torch
from d2go_fbnetv5.tools.solve_topologies import main, solve

from d2go_fbnetv5.arch import Backbone, Topology, block_costs
from d2go_fbnetv5.models import ImageClassifier, SearchedModel
from d2go_fbnetv5.models.flops import ModelFlops, average_flops, model_flops, resized
from d2go_fbnetv5.models.reconstructions import builtin_topology
from d2go_fbnetv5.zoo import create_model

PUBLISHED_FILE = Path(__file__).with_name("published_flops.json")
PUBLISHED = json.loads(PUBLISHED_FILE.read_text())


def rows(task):
    return [pytest.param(row, id=f"{row['family']}-{row['size'][0]}") for row in PUBLISHED[task]["rows"]]


def count(task, row):
    with torch.device("meta"):
        model = create_model(f"FBNetV5-{row['family']}-{task}")
    flops = model_flops(model, tuple(row["size"]))
    errors = {name: flops.parts[name] / 1e6 / row[name] - 1 for name in flops.parts if name in row}
    errors["total"] = flops.total / 1e6 / row["total"] - 1
    return flops, {name: abs(error) for name, error in errors.items()}


@pytest.mark.parametrize("row", rows("CLS"))
def test_table_2(row):
    flops, errors = count("CLS", row)
    assert set(flops.parts) == {"BB", "head"}
    assert errors["total"] < 0.025


@pytest.mark.parametrize("row", rows("DET"))
def test_table_7(row):
    flops, errors = count("DET", row)
    assert list(flops.parts) == ["BB", "RPN", "ROI"]
    assert errors["BB"] < 0.015 and errors["RPN"] < 0.02 and errors["ROI"] < 0.01 and errors["total"] < 0.015


@pytest.mark.parametrize("row", rows("SEG"))
def test_table_6(row):
    flops, errors = count("SEG", row)
    assert list(flops.parts) == ["BB", "PD", "TD", "SM"]
    assert errors["BB"] < 0.025 and errors["PD"] < 0.04 and errors["total"] < 0.04
    # SM agrees for the sizes at 384 pixels. The published C and F have 5 and 14 million more, and 6 and 16
    # million more in PD, than 56 x 56 and 64 x 64 features of Path 1 can cost; we found no reading that gives both.
    assert errors["SM"] < (0.02 if row["size"][0] == 384 else 0.10)
    # TD, published, is what the linear layers and the 1 x 1 convolution cost that depend on the image: without the
    # products of the attention (2 Q K D), which we count, and without the first layer's work on its learned
    # queries, which is a constant (ModelFlops.constant). So counted, it agrees within 2%.
    with torch.device("meta"):
        model = create_model(f"FBNetV5-{row['family']}-SEG")
        keys = model.backbone(torch.empty(1, 3, *row["size"]))["path3"][0, 0].numel()
    assert abs((flops.parts["TD"] - 2 * 100 * keys * 256) / 1e6 / row["TD"] - 1) < 0.02
    assert errors["TD"] < 0.09
    self_attention = 4 * 100 * 256 * 256 + 2 * 100 * 100 * 256
    assert flops.constant == self_attention + 100 * 256 * 256


def test_parts_by_hand():
    model = ImageClassifier(Backbone("N", Topology.named("linear"), ("path3",)), 10)
    flops = model_flops(model, (96, 96))
    assert flops.parts["head"] == 64 * 192 * 9 + 192 * 192 + 192 * 10
    assert flops.total == sum(flops.parts.values())
    assert flops.parameters == sum(p.numel() for p in model.parameters())


def test_counting_leaves_the_model_alone():
    model = ImageClassifier(Backbone("N", Topology.named("linear"), ("path3",)), 10).train()
    model_flops(model, (96, 96))
    assert model.training and all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())


def test_counting_needs_a_size_and_a_known_model():
    backbone = Backbone("N", Topology.named("linear"), ("path3",))
    with pytest.raises(ValueError, match=r"size \(0, 96\)"):
        model_flops(ImageClassifier(backbone, 10), (0, 96))

    class Other(SearchedModel):
        in_features = ("path3",)

    with pytest.raises(ValueError, match="cannot count a Other; allowed are ImageClassifier"):
        model_flops(Other(backbone, 10), (96, 96))


def test_resize_rule_of_appendix_h():
    assert resized((480, 640), 224, 320) == (224, 299)
    assert resized((640, 480), 224, 320) == (299, 224)
    assert resized((427, 640), 224, 320) == (214, 320)  # 224 x 336 would pass 320
    assert resized((480, 640), 320, 640) == (320, 427)
    assert resized((100, 1000), 320, 640) == (64, 640)


def test_average_by_hand():
    reference = ModelFlops((100, 200), {"BB": 1000, "RPN": 500, "ROI": 300}, 0, frozenset({"ROI"}))
    assert average_flops(reference, [(100, 200)], 100, 200) == 1800
    # 100 x 100 has half of the reference's area; only what depends on it is halved.
    assert average_flops(reference, [(50, 50), (200, 400)], 100, 200) == 300 + 1500 * 0.75
    with pytest.raises(ValueError, match="at least one"):
        average_flops(reference, [], 100, 200)


@pytest.mark.parametrize("row", rows("DET"))
def test_published_averages_are_of_this_form(row):
    # The mean area over COCO's val set relative to the reference size follows from any one row of that size; the
    # other rows' averages then agree to the published digits.
    assert row["size"] in ([213, 320], [320, 481])
    ratio = {213: (713 - 182) / (733 - 182), 320: (1367 - 182) / (1441 - 182)}[row["size"][0]]
    assert row["ROI"] + (row["total"] - row["ROI"]) * ratio == pytest.approx(row["average"], abs=3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["CLS", "SEG", "DET"])
def test_built_in_topologies_keep_what_the_tables_say(task):
    candidates = solve(task, PUBLISHED[task]["rows"])
    kept = builtin_topology(task).kept_per_path
    worst = {candidate.kept: candidate.worst for candidate in candidates}
    assert len(worst) == 8**4
    assert worst[kept] < 0.0151
    if task == "DET":
        assert candidates[0].kept == kept and worst[kept] < 0.004


@pytest.mark.slow
def test_solver_recovers_known_counts(tmp_path, capsys):
    topology = Topology([[1, 0, 1, 1], [0, 1, 1, 1]])
    published = {}
    for task in ("CLS", "SEG", "DET"):
        rows = []
        for side in (64, 96, 160):
            with torch.device("meta"):
                model = create_model(f"FBNetV5-N-{task}")
            costs = block_costs("N", model.padded_size((side, side)))
            total = costs.network(topology) + (model_flops(model, (side, side)).parts.get("head", 0))
            rows.append(
                {"family": "N", "size": [side, side], "total" if task == "CLS" else "BB": total / 1e6}
            )
        published[task] = {"source": "made up", "rows": rows}
    path = tmp_path / "published.json"
    path.write_text(json.dumps(published))
    main([str(path), "--stages", "2", "--show", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert [line.split("worst")[0].strip() for line in lines] == ["kept (1, 1, 2, 2)"] * 3
    assert all("worst  0.00%" in line for line in lines)
