"""The trained models of the package: made of a finished training, opened by name, and refused where they do not fit."""

import json
import re
from pathlib import Path

import pytest
import torch
from d2go_fbnetv5.tools import predict, pretrained
from fvcore.common.config import CfgNode

from d2go_fbnetv5 import create_model, list_models
from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.data import DigitScenes, EvalTransform
from d2go_fbnetv5.engine.config import get_cfg
from d2go_fbnetv5.engine.evaluation import evaluate
from d2go_fbnetv5.engine.network import Network
from d2go_fbnetv5.export.measure.subjects import open_subject
from d2go_fbnetv5.models import ImageClassifier, SeveralHeads
from d2go_fbnetv5.pseudo_labels.teachers.searched_models import zoo_teacher
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.shipped import pretrained_folder
from d2go_fbnetv5.zoo import from_zoo

FOUND = Topology([[0, 0, 0, 1], [0, 1, 0, 0]])
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCENES = {"num_images": 12, "size": 64}
METRICS = {"top1": "top-1", "AP": "AP", "mIoU": "mIoU"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ImageClassifier(Backbone("N", FOUND, ("path3",)), 10, pixel_mean=MEAN, pixel_std=STD).eval()


def top1(model):
    right = []
    for sample in DigitScenes("val", **SCENES):
        scores = model([sample])[0]["class_scores"]
        right.append(scores.argmax().item() == sample["class_label"])
    return sum(right) / len(right)


@pytest.fixture
def run(tmp_path, model):
    """The folder of a finished training on digit scenes."""
    folder = tmp_path / "run"
    folder.mkdir()
    names = tuple(map(str, range(10)))
    Network("ImageClassifier", "N", FOUND, names, {}, MEAN, STD, EvalTransform(64)).write(
        folder, ImageClassifier
    )
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FBNETV5.FAMILY = "ImageClassifier", "N"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ["digit_scenes_train"], ["digit_scenes_val"]
    cfg.FBNETV5_DATA.DATASETS.update(
        {"digit_scenes_train": CfgNode(SCENES), "digit_scenes_val": CfgNode(SCENES)}
    )
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.CROP.SIZE, cfg.SEED = 64, [64, 64], 5
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 4
    (folder / "config.yaml").write_text(cfg.dump())
    with torch.no_grad():
        record = {"iteration": 9, "eval/top1": top1(model)}
    (folder / "metrics.json").write_text(json.dumps(record) + "\n")
    return folder


@pytest.fixture
def shipped(run, tmp_path, monkeypatch):
    """The folder of a package that has this one model."""
    folder = tmp_path / "pretrained"
    monkeypatch.setattr("d2go_fbnetv5.zoo.pretrained_folder", lambda: folder)
    assert pretrained.main([str(run), "--output", str(folder)]) == 0
    return folder


def test_a_finished_training_becomes_a_model_of_the_package(shipped, model):
    assert list_models(pretrained=True) == ["FBNetV5-N-CLS"]
    opened = create_model("FBNetV5-N-CLS", pretrained=True)
    assert opened.training and opened.backbone.topology == FOUND.prune(["path3"])
    found, expected = opened.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Half precision's own error, of numbers under 2**-14 an absolute one.
        assert torch.allclose(found[name], tensor, rtol=2**-11, atol=2**-25), name
    card = json.loads((shipped / "FBNetV5-N-CLS" / "card.json").read_text())
    assert (card["licence"], card["seed"], card["iterations"]) == ("Apache-2.0", 5, 10)
    assert "digit_scenes_train alone" in card["limits"]


def test_what_fits_the_weights_may_be_said(shipped):
    assert create_model("FBNetV5-N-CLS", 10, FOUND, pretrained=True, pixel_mean=list(MEAN)).num_classes == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": 11}, "num_classes is 11, allowed with the trained weights of FBNetV5-N-CLS: 10"),
        ({"topology": Topology.full(2)}, "topology is .*, allowed with the trained weights of FBNetV5-N-CLS"),
        ({"weights": "mine.pth"}, "weights is 'mine.pth', allowed with the trained weights of .*: None"),
        ({"pixel_mean": (0, 0, 0)}, "pixel_mean is .*, allowed with"),
        ({"dropout": 0.9}, "dropout is 0.9, allowed with the trained weights of FBNetV5-N-CLS: 0.0"),
    ],
)
def test_what_the_card_contradicts_is_refused(shipped, given, message):
    with pytest.raises(InputError, match=message):
        create_model("FBNetV5-N-CLS", pretrained=True, **given)


def test_a_name_without_weights_says_which_have_some(shipped):
    with pytest.raises(InputError, match="for FBNetV5-A-DET; they do for FBNetV5-N-CLS"):
        create_model("FBNetV5-A-DET", pretrained=True)


def test_spoiled_weights_are_noticed(shipped):
    path = shipped / "FBNetV5-N-CLS" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="has the SHA-256"):
        create_model("FBNetV5-N-CLS", pretrained=True)


def test_whoever_takes_models_by_name_takes_them(shipped, model, tmp_path, capsys):
    predictor = from_zoo("FBNetV5-N-CLS", None, pretrained=True)
    assert (predictor.names, predictor.transform.short_side) == (tuple("0123456789"), 64)
    assert from_zoo("FBNetV5-N-CLS", None, names=list("abcdefghij"), pretrained=True).names[0] == "a"
    assert open_subject("pretrained/FBNetV5-N-CLS").size == (64, 64)
    assert zoo_teacher(torch.device("cpu"), "FBNetV5-N-CLS", pretrained=True).class_names == predictor.names
    with pytest.raises(InputError, match="weights of FBNetV5-N-CLS are missing"):
        zoo_teacher(torch.device("cpu"), "FBNetV5-N-CLS")
    photo = tmp_path / "photo.png"
    image = DigitScenes("val", **SCENES)[0]["image"]
    predict.write_png(photo, image.permute(1, 2, 0).numpy())
    arguments = [str(photo), "--model", "FBNetV5-N-CLS", "--output", str(tmp_path / "seen")]
    assert predict.main([*arguments, "--pretrained"]) == 0
    (seen,) = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    scores = model([{"image": image, "image_id": 0}])[0]["class_scores"]
    assert seen["classes"][0]["name"] == str(scores.argmax().item())
    capsys.readouterr()
    assert predict.main(arguments) == 2
    assert "needs --weights FILE or --pretrained" in capsys.readouterr().err
    assert predict.main([*arguments[:1], "--run", str(tmp_path), "--pretrained"]) == 2
    assert "--pretrained: --run brings its own weights" in capsys.readouterr().err


def of_another_kind(run):
    names, head = {"cls": ("cat",), "depth": ("metres",)}, {"heads": {"cls": {}, "depth": {}}}
    network = Network("SeveralHeads", "N", FOUND, names, head, MEAN, STD, EvalTransform(64))
    network.write(run, SeveralHeads)
    torch.save({"model": network.build(SeveralHeads).state_dict()}, run / "model_final.pth")


def of_other_data(run):
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("digit_scenes_val", "fashion_scenes_val")
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "model_final.pth").unlink(), "has no model_final.pth"),
        (lambda run: (run / "metrics.json").unlink(), "has no metrics of its end"),
        (
            lambda run: (run / "metrics.json").write_text('{"iteration": 9, "eval/top1": 2.0}\n'),
            "top1 is .* now",
        ),
        (of_another_kind, "is of a SeveralHeads, allowed: models for CLS, SEG, DET, DEPTH"),
        (of_other_data, "has the data set fashion_scenes_val, allowed: digit_scenes_train"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(run, tmp_path, capsys, spoil, message):
    spoil(run)
    assert pretrained.main([str(run), "--output", str(tmp_path / "pretrained")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not any((tmp_path / "pretrained").glob("*"))


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_the_packages_own_reach_what_their_card_says(name):
    """On 48 images of their validation set, with room for the error of so few, and to the very numbers each time."""
    card = json.loads((pretrained_folder() / name / "card.json").read_text())
    size = card["configuration"].get("FBNETV5_DATA.DATASETS.digit_scenes_val.size")
    scenes = DigitScenes("val", size, 48)
    first, second = (from_zoo(name, None, pretrained=True) for _ in range(2))
    metrics = evaluate(
        first.model, [[first.transform(sample)] for sample in scenes], first.model.evaluator(scenes.info)
    )
    metric = next(iter(card["metrics"]))
    assert metrics[metric] > card["metrics"][metric] - 0.1
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {METRICS[metric]} {card['metrics'][metric]:.3f} |" in page
    image = scenes[0]["image"]
    assert all(map(torch.equal, first(image).values(), second(image).values()))
