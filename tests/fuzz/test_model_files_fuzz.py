"""What a model is loaded from, spoilt: checkpoints, `network.json` and a detector's settings."""

import io
import json
import math
import random
from pathlib import Path

import pytest
import torch
from mutations import VALUES, mutate, outcome

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network
from d2go_fbnetv5.export.host import HostSettings
from d2go_fbnetv5.models import ImageClassifier
from d2go_fbnetv5.models.weights import load_weights

COUNTS = [20, pytest.param(300, marks=pytest.mark.slow)]


def build_model(seed):
    torch.manual_seed(seed)
    return ImageClassifier(Backbone("N", Topology.named("linear", 2), ImageClassifier.in_features), 3)


@pytest.fixture(scope="module")
def checkpoint():
    """The bytes of a checkpoint, and the weights in it."""
    state = build_model(0).state_dict()
    file = io.BytesIO()
    torch.save({"model": state, "iteration": 3}, file)
    return file.getvalue(), state


def equal(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def spoil_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content))
        length = rng.choice([1, 1, 8, 64, 4096])
        kind = rng.choice(["flip", "zero", "cut", "drop", "insert", "swap"])
        if kind == "flip":
            content[start] ^= 1 << rng.randrange(8)
        elif kind == "zero":
            content[start : start + length] = bytes(len(content[start : start + length]))
        elif kind == "cut":
            del content[max(start, 1) :]
        elif kind == "drop":
            del content[start : start + length]
        elif kind == "insert":
            content[start:start] = rng.randbytes(length)
        else:
            other = rng.randrange(len(content))
            content[start : start + length], content[other : other + length] = (
                content[other : other + length],
                content[start : start + length],
            )
    return bytes(content)


@pytest.mark.parametrize("count", COUNTS)
def test_a_checkpoint_of_other_bytes_is_refused_or_gives_the_very_weights(checkpoint, tmp_path, count):
    content, state = checkpoint
    refused, model = 0, build_model(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in range(count):
        rng = random.Random(seed)
        (tmp_path / "model.pth").write_bytes(spoil_bytes(content, rng))
        message = outcome(lambda: load_weights(model, tmp_path / "model.pth"))
        assert message is None or "model.pth" in message
        assert equal(model, before if message else state), seed
        refused += message is not None
        model.load_state_dict(before)
    assert refused > 0.8 * count


KINDS = ["drop", "rename", "shape", "nan", "inf", "none", "text", "list", "sparse", "complex", "meta"]


def spoil_state(state, rng):
    """Change one to three entries of a checkpoint's content."""
    state = dict(state)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(state))
        value = state[name]
        kind = rng.choice(
            ["drop", "rename", "shape", "nan", "inf", "none", "text", "list", "sparse", "complex", "meta"]
        )
        if kind == "drop" or not isinstance(value, torch.Tensor):
            del state[name]
        elif kind == "rename":
            state[name + rng.choice([".x", " ", "0"])] = state.pop(name)
        elif kind == "shape":
            state[name] = torch.zeros(*value.shape, 2)
        elif kind in ("nan", "inf"):
            state[name] = torch.full(value.shape, float(kind))
        elif kind == "sparse":
            state[name] = value.float().reshape(-1).to_sparse()
        elif kind == "complex":
            state[name] = torch.complex(value.float(), value.float())
        elif kind == "meta":
            state[name] = value.to("meta")
        else:
            state[name] = {"none": None, "text": "x", "list": [1.0]}[kind]
    return state


@pytest.mark.parametrize("count", COUNTS)
def test_a_checkpoint_of_other_content_is_refused_and_leaves_the_model_as_it_was(checkpoint, tmp_path, count):
    _, state = checkpoint
    model = build_model(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ignored = {name for name in state if name.endswith("num_batches_tracked")}
    for seed in range(count):
        rng = random.Random(seed)
        spoilt = spoil_state(state, rng)
        content = rng.choice(
            [{"model": spoilt}, spoilt, {"model": spoilt, "ema": rng.choice([None, [], "x"])}]
        )
        torch.save(content, tmp_path / "model.pth")
        message = outcome(lambda: load_weights(model, tmp_path / "model.pth"))
        changed = {name for name in state.keys() | spoilt.keys() if state.get(name) is not spoilt.get(name)}
        assert (message is not None) or changed <= ignored, (seed, changed)
        assert message is None or ("model.pth" in message and equal(model, before)), (seed, message)
        model.load_state_dict(before)


def test_what_is_no_checkpoint_at_all_is_one_sentence_without_bad_advice(tmp_path):
    model = build_model(0)
    for value in [*VALUES, "hello", "a: 1", '{"a": 1}', "PK\x03\x04", "\x80\x04."]:
        (tmp_path / "x").write_text(value, encoding="utf-8", errors="replace")
        message = outcome(lambda: load_weights(model, tmp_path / "x"))
        assert "x" in message and "weights_only" not in message
    for value in (None, [], 3, "text", {}, {"model": None}, {"model": []}, {"model": {}}):
        torch.save(value, tmp_path / "x")
        assert str(tmp_path / "x") in outcome(lambda: load_weights(model, tmp_path / "x"))


@pytest.mark.parametrize("count", COUNTS)
def test_a_spoilt_description_is_one_sentence_or_a_model_that_can_be_built(tmp_path, count):
    network = Network(
        "ImageClassifier",
        "N",
        Topology.named("linear", 2),
        ("cat", "dog"),
        {"dropout": 0.1},
        (1.0, 2.0, 3.0),
        (4.0, 5.0, 6.0),
        EvalTransform(96, None, 128),
    )
    network.write(tmp_path, ImageClassifier)
    file = Path(tmp_path, NETWORK_FILE)
    text, taken = file.read_text(encoding="utf-8"), 0

    def read_and_build():
        read = Network.read(tmp_path)
        return read, read.build(ImageClassifier)

    for seed in range(count):
        rng = random.Random(seed)
        if rng.random() < 0.5:
            spoilt = mutate(text, rng)
        else:
            content = json.loads(text)
            place = rng.choice([content, content["head"], content["images"], content["topology"]])
            place[rng.choice(list(place))] = rng.choice(
                [None, -1, 0, 1e9, 10**30, "x", [], {}, [[1]], True, 0.5]
            )
            spoilt = json.dumps(content)
        file.write_text(spoilt, encoding="utf-8")
        found = outcome(read_and_build)
        if isinstance(found, str):
            assert NETWORK_FILE in found, found
            continue
        taken += 1
        read, model = found
        read.write(tmp_path, ImageClassifier)
        written = file.read_text(encoding="utf-8")
        Network.read(tmp_path).write(tmp_path, ImageClassifier)
        assert file.read_text(encoding="utf-8") == written
        assert model.num_classes == len(read.names)
    assert taken < 0.6 * count


SETTINGS = HostSettings(
    ((-8.0, -8.0, 8.0, 8.0), (-16.0, -8.0, 16.0, 8.0)), 8, 6, 10, 100, 30, 0.7, 0.05, 0.5, 100
)


@pytest.mark.parametrize("count", COUNTS)
def test_spoilt_settings_of_a_detector_are_one_sentence_or_kept(count):
    odd = [None, -1, 0, 8, "8", 1e9, 10**30, math.nan, math.inf, True, [], {}, [[1]], [["a", 0, 1, 1]], 0.5]
    taken = 0
    for seed in range(count):
        rng = random.Random(seed)
        content = SETTINGS.to_json()
        for _ in range(rng.randint(1, 2)):
            name = rng.choice([*content, "more"])
            if rng.random() < 0.2:
                content.pop(name, None)
            else:
                content[name] = rng.choice(odd)
        found = outcome(lambda content=content: HostSettings.from_json(content))
        if not isinstance(found, str):
            taken += 1
            assert found.to_json() == content
            assert found.stride >= 1 and 1 <= found.max_detections <= 10**6 and 0 <= found.iou <= 1
    assert taken < 0.5 * count and HostSettings.from_json(SETTINGS.to_json()) == SETTINGS
