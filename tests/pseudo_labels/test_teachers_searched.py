"""Our own models as teachers: a run's classifier, Lite R-CNN and Lite MaskFormer, and the zoo's."""

import json

import pytest
import torch

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.config import find_config, load_cfg
from d2go_fbnetv5.engine.recipes.base import get_recipe
from d2go_fbnetv5.engine.recipes.models import build_searched_model
from d2go_fbnetv5.pseudo_labels import build_teacher
from d2go_fbnetv5.tasks.base import DatasetInfo

NAMES = ["one", "two", "three"]
ATTRIBUTES = {"cls": "class_names", "det": "box_names", "seg": "sem_seg_names"}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def run(tmp_path):
    """Writes what a training leaves and `from_run` reads, with the weights that a model starts with."""

    def write(task):
        options = ["MODEL.FBNETV5.TOPOLOGY", "", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", 64]
        options += ["MODEL_EMA.ENABLED", False, "MODEL.FBNETV5.FAMILY", "N"]
        cfg = load_cfg(find_config(f"{task}/{task}_digits.yaml"), list(map(str, options)))
        recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
        torch.manual_seed(0)
        model = build_searched_model(cfg, recipe.kind, DatasetInfo(), tuple(NAMES)).eval()
        folder = tmp_path / task
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "model.json").write_text(json.dumps({"task": task, "names": NAMES}))
        torch.save({"model": model.state_dict()}, folder / "model_final.pth")
        return str(folder), model

    return write


def photos():
    generator = torch.Generator().manual_seed(0)
    sizes = ((64, 96), (120, 80))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize("task", ATTRIBUTES)
def test_a_run_labels_what_its_model_predicts(run, task):
    folder, model = run(task)
    teacher = build_teacher("run", run=folder)
    assert getattr(teacher, ATTRIBUTES[task]) == tuple(NAMES)
    assert sum(len(getattr(teacher, name)) for name in ATTRIBUTES.values()) == len(NAMES)
    images = photos()
    found = teacher(images)
    for image, output in zip(images, found, strict=True):
        resized = EvalTransform(64)({"image": image})["image"]
        (expected,) = model([{"image": resized}])
        if task == "cls":
            assert torch.allclose(output["class_scores"], expected["class_scores"], atol=1e-5)
        elif task == "det":
            scale = torch.tensor(
                [image.shape[-1] / resized.shape[-1], image.shape[-2] / resized.shape[-2]] * 2
            )
            assert torch.allclose(output["boxes"], expected["boxes"] * scale, atol=1e-2)
            assert torch.equal(output["labels"], expected["labels"]) and len(output["labels"])
        else:
            assert output["probabilities"].shape == (3, *resized.shape[-2:])
            assert 0 <= output["probabilities"].min() <= output["probabilities"].max() <= 1
            assert torch.equal(output["probabilities"].argmax(0), expected["sem_seg"])


def test_confidence_of_a_pixel_is_what_the_queries_say_of_it(run):
    folder, _ = run("seg")
    teacher = build_teacher("run", run=folder, names=["a", "b", "c"])
    assert teacher.sem_seg_names == ("a", "b", "c")
    head = teacher.predictor.model.segmentation
    # Every query sees nothing: softmax over 3 classes and "no object" gives each class about exp(-10).
    head.classes.weight.zero_()
    head.classes.bias.copy_(torch.tensor([0.0, 0, 0, 10]))
    for output in teacher(photos()):
        assert output["probabilities"].max() < 100 * 5e-5
    # Every query is sure of the second class, and of half of each pixel: their sum, 50, becomes 1.
    head.classes.bias.copy_(torch.tensor([0.0, 50, 0, 0]))
    head.mask_embedding[-1].weight.zero_()
    head.mask_embedding[-1].bias.zero_()
    for output in teacher(photos()):
        assert torch.allclose(output["probabilities"][1], torch.tensor(1.0))
        assert output["probabilities"][[0, 2]].max() < 1e-6


def test_a_model_of_the_zoo(tmp_path):
    from d2go_fbnetv5.zoo import create_model

    path = tmp_path / "model.pth"
    torch.save(create_model("FBNetV5-N-DET", num_classes=3).state_dict(), path)
    teacher = build_teacher("zoo", model="FBNetV5-N-DET", weights=str(path), names=NAMES)
    assert teacher.box_names == tuple(NAMES)
    for image, output in zip(photos(), teacher(photos()), strict=True):
        limits = torch.tensor([image.shape[-1], image.shape[-2]] * 2)
        assert (output["boxes"] >= 0).all() and (output["boxes"] <= limits + 1e-3).all()


def test_wrong_input_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="run nowhere: no network.json"):
        build_teacher("run", run="nowhere")
    folder, model = run("cls")
    with pytest.raises(ValueError, match="2 names are given, the model has 3 classes"):
        build_teacher("run", run=folder, names=["a", "b"])
    state = model.state_dict()
    state["head.fc.bias"][1] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"run .*: 'head.fc.bias' is not finite"):
        build_teacher("run", run=folder, weights=str(tmp_path / "nan.pth"))
