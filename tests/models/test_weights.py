"""Which files a search may start from, and that all of a supernet comes from them or nothing."""

import logging

import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import Backbone, Supernet, Topology
from d2go_fbnetv5.models import LiteRCNN
from d2go_fbnetv5.models.detectron2_names import to_generalized_rcnn
from d2go_fbnetv5.models.weights import load_search_weights, load_weights, read_weights


class Search(nn.Module):
    """As much of a search as its weights need: a supernet, one head, and what another search must not give."""

    def __init__(self, family="N", stages=2, classes=4):
        super().__init__()
        self.supernet = Supernet(family, stages)
        self.tasks = nn.ModuleDict({"cls": nn.Sequential(nn.Linear(5, 6), nn.Linear(6, classes))})
        self.register_buffer("step", torch.tensor(0))


@pytest.fixture
def stored(tmp_path):
    def store(search, change=lambda state: state):
        path = tmp_path / "search.pth"
        torch.save({"model": change(dict(search.state_dict()))}, path)
        return path

    return store


def same(one, other, prefix):
    return all(
        torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items() if k.startswith(prefix)
    )


def test_a_search_gives_its_supernet_and_heads_and_not_how_far_it_came(stored):
    given, taken = Search(), Search()
    given.step.fill_(7)
    load_search_weights(taken, stored(given))
    assert same(given, taken, ("supernet.", "tasks."))
    assert int(taken.step) == 0


def test_a_supernet_alone_or_its_first_stage_will_do_and_the_log_says_what_is_untrained(stored, caplog):
    given, taken = Search(), Search()
    bare = stored(given, lambda state: {k[9:]: v for k, v in state.items() if k.startswith("supernet.")})
    load_search_weights(taken, bare)
    assert same(given, taken, "supernet.")
    with caplog.at_level(logging.INFO):
        only = stored(
            given, lambda state: {k: v for k, v in state.items() if k.startswith("supernet.stage0.")}
        )
        load_search_weights(Search(), only)
    assert "none for some of tasks.cls, the searchable blocks" in caplog.text


def test_a_head_of_other_classes_keeps_what_has_its_shape(stored):
    given, taken = Search(classes=9), Search()
    before = taken.tasks["cls"][1].weight.clone()
    load_search_weights(taken, stored(given))
    assert torch.equal(taken.tasks["cls"][0].weight, given.tasks["cls"][0].weight)
    assert torch.equal(taken.tasks["cls"][1].weight, before)


def without(name):
    return lambda state: {k: v for k, v in state.items() if name not in k}


def spoilt(value):
    return lambda state: state | {"supernet.stage0.path0.0.conv.weight": value}


@pytest.mark.parametrize(
    ("given", "change", "words"),
    [
        (("A_C", 2), dict, "no supernet of family N with 2 stages"),
        (("N", 3), dict, "no supernet of family N with 2 stages: not of this model"),
        (("N", 1), dict, "weights are missing"),
        (("N", 2), without("stage0.path0.0.conv.weight"), "stage0.path0.0.conv.weight"),
        (("N", 2), without("supernet."), "holds no supernet"),
        (("N", 2), spoilt(torch.ones(3)), r"stage0.path0.0.conv.weight' is \(3,\) in the file"),
    ],
)
def test_another_supernet_is_refused_whole(stored, given, change, words):
    taken = Search()
    before = {name: value.clone() for name, value in taken.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        load_search_weights(taken, stored(Search(*given), change))
    assert all(torch.equal(before[name], value) for name, value in taken.state_dict().items())


@pytest.mark.parametrize("name", ["conv.weight", "running_var"])
def test_weights_that_are_not_finite_and_variances_below_0_are_named(stored, name):
    def change(state):
        found = next(key for key in state if key.endswith(name))
        return state | {found: torch.full_like(state[found], float("nan") if name == "conv.weight" else -1.0)}

    with pytest.raises(ValueError, match=f"{name}.*(not finite|below 0)"):
        load_search_weights(Search(), stored(Search(), change))


@pytest.mark.parametrize(
    "content",
    [
        None,
        [1],
        {"model": None},
        {"model": [torch.ones(1)]},
        {"model": {}},
        {1: torch.ones(1)},
        {"ema": None},
        {"ema_state": None, "model": None},
    ],
)
def test_what_holds_no_named_tensors_is_one_sentence(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        read_weights(tmp_path / "odd.pth", averaged=True)


@pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("ema", "module."), ("ema_state", "")])
def test_a_detector_of_any_trainer_gives_its_weights_and_their_average(tmp_path, key, prefix):
    def detector(seed):
        torch.manual_seed(seed)
        return LiteRCNN(Backbone("N", Topology.named("linear", stages=1), ("path1",)), num_classes=2)

    given, other, taken = map(detector, range(3))
    theirs = to_generalized_rcnn(given.state_dict())
    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(15, 4)}
    pixels = {"pixel_mean": torch.zeros(3, 1, 1)} if key == "ema_state" else {}
    content = {"model": to_generalized_rcnn(other.state_dict())}
    content[key] = {f"{prefix}{name}": value for name, value in (theirs | anchors | pixels).items()}
    torch.save(content, tmp_path / "model_final.pth")
    load_weights(taken, tmp_path / "model_final.pth", averaged=True)
    assert same(given, taken, "")
