"""Detectron2's models as teachers, small ones with random weights, and a project that registers its own."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from d2go_fbnetv5.pseudo_labels import build_teacher
from d2go_fbnetv5.pseudo_labels.teachers.detectron2_config import detectron2_configuration
from d2go_fbnetv5.pseudo_labels.teachers.detectron2_weights import load_arrays

SMALL = """
MODEL:
  WEIGHTS: ""
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, STEM_OUT_CHANNELS: 8, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}
"""
DETECTOR = (
    SMALL
    + """
DATASETS: {TEST: [coco_2017_val]}
"""
)
ROI = {
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
}
SEGMENTER = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NORM": "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
}
PROJECT = '''
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances


def add_tiny_config(cfg):
    cfg.MODEL.TINY = CfgNode({"CLASSES": 1})


@META_ARCH_REGISTRY.register()
class TinyMaskFormer(torch.nn.Module):
    """Knows two classes: the left half, of which two queries are sure, and pixels that it has no weight for."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        # In version 1 the weight was twice as large and had another name.
        if local_metadata.get("version", 1) < 2:
            for name in list(state_dict):
                state_dict[name.replace("old_", "")] = state_dict.pop(name) / 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    def __init__(self, cfg):
        super().__init__()
        self.count = cfg.MODEL.TINY.CLASSES
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return [self.predict(each["height"], each["width"], each["image"]) for each in batch]

    def predict(self, height, width, image):
        masks = torch.zeros(2, height, width)
        masks[0, :, : width // 2] = 1
        instances = Instances((height, width))
        instances.pred_masks = masks
        instances.pred_boxes = Boxes(torch.zeros(2, 4))
        instances.scores = torch.tensor([0.9, 0.4])
        instances.pred_classes = torch.tensor([1, 0])
        first_pixel = image[:, 0, 0].mean() / 255 * self.weight
        sums = torch.stack([masks[0] * 2 + 0.5] + [masks[0] * 0.5 + first_pixel] * (self.count - 1))
        return {"instances": instances, "sem_seg": sums}
'''


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def detectron2():
    reason = "Detectron2 is not installed (it is not on PyPI)"
    return pytest.importorskip("detectron2.modeling", reason=reason, exc_type=ImportError)


@pytest.fixture
def saved(detectron2, tmp_path):
    """Saves a configuration and the weights that its model starts with."""
    from detectron2.config import get_cfg

    def save(text, options):
        config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
        config.write_text(text)
        opts = [part for pair in options.items() for part in pair]
        cfg = get_cfg()
        cfg.merge_from_file(str(config))
        cfg.merge_from_list([*opts, "MODEL.DEVICE", "cpu"])
        torch.manual_seed(0)
        model = detectron2.build_model(cfg).eval()
        torch.save({"model": model.state_dict(), "iteration": 3}, weights)
        return model, {"config": str(config), "weights": str(weights), "opts": opts}

    return save


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def detectron2_input(image):
    """As Detectron2's own predictor makes it."""
    from detectron2.data import transforms

    pixels = image.permute(1, 2, 0).numpy()[:, :, ::-1]
    pixels = transforms.ResizeShortestEdge([64, 64], 96).get_transform(pixels).apply_image(pixels)
    tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
    return {"image": tensor, "height": image.shape[-2], "width": image.shape[-1]}


def test_a_detector(saved):
    model, options = saved(DETECTOR, ROI)
    teacher = build_teacher("detectron2", **options)
    assert len(teacher.box_names) == 80 and teacher.box_names[11] == "stop sign"
    assert (teacher.sem_seg_names, teacher.class_names) == ((), ())
    batch = images((60, 90), (80, 40), (60, 90))
    found = teacher(batch)
    for image, output in zip(batch, found, strict=True):
        expected = model([detectron2_input(image)])[0]["instances"]
        assert len(expected) and torch.allclose(output["boxes"], expected.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(output["scores"], expected.scores, atol=1e-5)
        assert torch.equal(output["labels"], expected.pred_classes)
    options["opts"] += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0]
    assert [output["boxes"].shape for output in build_teacher("detectron2", **options)(batch)] == [(0, 4)] * 3


def test_a_segmenter_of_logits(saved):
    model, options = saved(SMALL, SEGMENTER)
    teacher = build_teacher("detectron2", **options, sem_seg_names=["sky", "N/A", "sea"])
    assert teacher.sem_seg_names == ("sky", "sea")
    batch = images((60, 90), (80, 40))
    for image, output in zip(batch, teacher(batch), strict=True):
        logits = model([detectron2_input(image)])[0]["sem_seg"]
        assert torch.allclose(output["probabilities"], logits.softmax(0)[[0, 2]], atol=1e-5)
    with pytest.raises(
        ValueError, match="sem_seg_names must be given, for DATASETS.TEST .* has no stuff_classes"
    ):
        build_teacher("detectron2", **options)
    with pytest.raises(ValueError, match="2 sem_seg_names, the model has 3 classes"):
        build_teacher("detectron2", **options, sem_seg_names=["sky", "sea"])


@pytest.fixture
def project(detectron2, tmp_path, monkeypatch):
    """A project's folder with a module, a configuration and weights, and the options of its teacher."""
    name = f"project_{tmp_path.name}".replace("-", "_")
    text = PROJECT.replace("TinyMaskFormer", f"{name}MaskFormer")
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "config.yaml").write_text(
        f"MODEL: {{META_ARCHITECTURE: {name}MaskFormer, TINY: {{CLASSES: 2}}, WEIGHTS: {tmp_path}/weights.pkl}}"
    )
    with open(tmp_path / "weights.pkl", "wb") as file:
        weights = {"model": {"weight": np.ones(1, dtype=np.float32)}, "__author__": "us"}
        pickle.dump(weights, file)
    monkeypatch.chdir(tmp_path)
    hook = f"{name}:add_tiny_config"
    names = {"box_names": ["cat", "dog"], "sem_seg_names": ["left", "right"]}
    return {"config": "config.yaml", "imports": [name], "config_hook": hook, **names}


def test_a_project_of_its_own(project):
    teacher = build_teacher("detectron2", **project)
    assert (teacher.box_names, teacher.sem_seg_names) == (("cat", "dog"), ("left", "right"))
    (found,) = teacher([torch.full((3, 10, 20), 51, dtype=torch.uint8)])
    # Boxes are those of the masks; no mask, no box. The weight is the pickle's, 1.
    assert found["boxes"].tolist() == [[0, 0, 10, 10], [0, 0, 0, 0]]
    assert found["labels"].tolist() == [1, 0]
    # 2.5 and 0.7 of the left are more than 1 and scaled; 0.5 and 0.2 of the right are not.
    assert found["probabilities"][:, 0, 0].tolist() == pytest.approx([1, 0.7 / 2.5], abs=1e-4)
    assert found["probabilities"][:, 0, 19].tolist() == pytest.approx([0.5, 0.2], abs=1e-4)
    only = build_teacher("detectron2", **project | {"box_names": []})
    assert only.box_names == () and list(only([torch.zeros(3, 9, 9, dtype=torch.uint8)])[0]) == [
        "probabilities"
    ]
    plain = build_teacher("detectron2", **project, sem_seg_scores="probabilities")
    assert plain([torch.zeros(3, 9, 9, dtype=torch.uint8)])[0]["probabilities"].max() == 2.5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"config": "nowhere.yaml"}, "'nowhere.yaml'.*: no such file, and .*not available in Model Zoo"),
        ({"imports": ["no_such_module"]}, "imports: there is no module 'no_such_module'"),
        ({"config_hook": "math:no_such_function"}, "module 'math' has no function 'no_such_function'"),
        ({"config_hook": []}, "TINY"),
        ({"opts": ["MODEL.TINI", 3]}, "TINI"),
        ({"opts": ["MODEL.WEIGHTS", ""]}, "neither weights nor its MODEL.WEIGHTS"),
        (
            {"opts": ["MODEL.META_ARCHITECTURE", "Other"]},
            "No object named 'Other'.*imports must name the module",
        ),
        ({"weights": "nowhere.pth"}, "weights nowhere.pth do not exist"),
        ({"weights": "config.yaml"}, "weights config.yaml: .* is not a checkpoint of tensors"),
        ({"sem_seg_scores": "votes"}, "sem_seg_scores is 'votes', allowed are logits, probabilities, sums"),
        ({"sem_seg_names": ["all"]}, "1 sem_seg_names, the model has 2 classes"),
        ({"box_names": [], "sem_seg_names": []}, "gives instances, sem_seg, of which nothing is wanted"),
        ({"box_names": "cat"}, "box_names is 'cat', it must be a list of names"),
        ({"box_names": None}, "box_names must be given"),
    ],
)
def test_wrong_options_are_named(project, changed, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build_teacher("detectron2", **project | changed)


def test_programs_in_a_configuration_do_not_run(project, tmp_path, capsys, caplog):
    project["config"] = "top.yaml"
    (tmp_path / "top.yaml").write_text("_BASE_: middle.yaml\nINPUT: {MIN_SIZE_TEST: 32}")
    (tmp_path / "middle.yaml").write_text(
        "_BASE_: config.yaml\n"
        "INPUT:\n"
        '  MIN_SIZE_TRAIN: !!python/object/apply:eval ["print(3)"]\n'
        "  MAX_SIZE_TRAIN: !!python/object/apply:os.system [exit]\n"
        "  MIN_SIZE_TEST: 9\n"
        "DATASETS: {TEST: !!python/tuple [some_set]}\n"
    )
    assert build_teacher("detectron2", **project).box_names == ("cat", "dog")
    assert capsys.readouterr().out == ""
    assert "middle.yaml: MIN_SIZE_TRAIN is a program, which is not run" in caplog.text
    cfg = detectron2_configuration("x", "top.yaml", [project["config_hook"]], [])
    assert cfg.INPUT.MIN_SIZE_TRAIN == (800,) and cfg.INPUT.MAX_SIZE_TRAIN == 1333
    assert (
        cfg.INPUT.MIN_SIZE_TEST == 32 and cfg.DATASETS.TEST == ("some_set",) and cfg.MODEL.TINY.CLASSES == 2
    )
    for broken in ("[1, 2]", "INPUT: [", "INPUT: !!nothing 3"):
        (tmp_path / "middle.yaml").write_text(broken)
        with pytest.raises(ValueError, match="(?s)Detectron2 model 'top.yaml': .*middle.yaml"):
            build_teacher("detectron2", **project)


def test_scores_of_an_unknown_kind_are_asked_for(project, tmp_path):
    name = project["imports"][0]
    module, config = tmp_path / f"{name}_2.py", tmp_path / "config.yaml"
    module.write_text((tmp_path / f"{name}.py").read_text().replace(f"{name}MaskFormer", f"{name}Unknown"))
    config.write_text(config.read_text().replace(f"{name}MaskFormer", f"{name}Unknown"))
    with pytest.raises(ValueError, match=f"sem_seg_scores must say what {name}Unknown gives"):
        build_teacher("detectron2", **project | {"imports": [module.stem]})


def test_weights_of_older_versions_are_told_by_their_names(project, tmp_path):
    def brightness(path):
        teacher = build_teacher("detectron2", **project, weights=str(path), sem_seg_scores="probabilities")
        return float(teacher([torch.full((3, 9, 9), 255, dtype=torch.uint8)])[0]["probabilities"][1, 0, -1])

    versioned = OrderedDict(weight=torch.full((1,), 0.5))
    versioned._metadata = {"": {"version": 2}}
    states = {
        "versioned.pth": {"model": versioned},
        "plain.pth": {"weight": torch.full((1,), 0.5)},
        "old.pth": {"old_weight": torch.ones(1)},
    }
    for name, state in states.items():
        torch.save(state, tmp_path / name)
        assert brightness(tmp_path / name) == pytest.approx(0.5), name
    versioned._metadata = {"": {"version": 1}}
    torch.save(versioned, tmp_path / "first.pth")
    assert brightness(tmp_path / "first.pth") == pytest.approx(0.25)


def test_weights_must_be_complete_and_finite(project, tmp_path):
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights other.pth lack 1 of the model's 1: weight"):
        build_teacher("detectron2", **project, weights="other.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match="(?s)weights shape.pth: .*size mismatch"):
        build_teacher("detectron2", **project, weights="shape.pth")
    torch.save({"weight": torch.full((1,), float("nan"))}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="'weight' is not finite"):
        build_teacher("detectron2", **project, weights="nan.pth")


class Evil:
    def __reduce__(self):
        return print, ("the pickle has run",)


def test_pickles_of_arrays_are_read_and_others_run_nothing(tmp_path, capsys):
    path = tmp_path / "weights.pkl"
    content = {
        "model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(3)},
        "__author__": "Grüße",
    }
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(content, protocol))
        found = load_arrays(path)
        assert np.array_equal(found["model"]["a"], content["model"]["a"]) and found["model"]["b"] == 3
        assert found["__author__"] == "Grüße"
    path.write_bytes(pickle.dumps({"model": {"a": Evil()}}))
    with pytest.raises(ValueError, match="it asks for builtins.print"):
        load_arrays(path)
    path.write_bytes(pickle.dumps({"model": np.array([Evil()], dtype=object)}))
    with pytest.raises(ValueError, match="it asks for builtins.print"):
        load_arrays(path)
    for broken in (b"", b"nothing", pickle.dumps(content)[:40]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="no pickle of arrays"):
            load_arrays(path)
    assert capsys.readouterr().out == ""


def test_without_detectron2_one_sentence_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", None)
    with pytest.raises(
        ValueError, match=r"^Detectron2 model 'x.yaml' needs Detectron2, which is not on PyPI"
    ):
        build_teacher("detectron2", config="x.yaml")
