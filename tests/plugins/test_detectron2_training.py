"""Detectron2's trainer: what a search and its results need of optimizer, checkpointer and configuration."""

import json

import numpy as np
import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.data import CocoDetection, DigitScenes, write_multitask
from d2go_fbnetv5.data.images import encode_png
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.utils.errors import InputError


@pytest.fixture
def search_cfg(cfg):
    cfg.MODEL.META_ARCHITECTURE = "MultitaskSearch"
    cfg.MODEL.FBNETV5.NUM_STAGES, cfg.SEARCH.SAMPLES_PER_RANK, cfg.SEARCH.TASKS = 1, 1, ["cls"]
    cfg.SEARCH.COST.WEIGHT = 0.0
    cfg.SOLVER.BASE_LR, cfg.SEARCH.ARCH_LR_FACTOR = 0.1, 0.01
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [64, 64]
    return cfg


@pytest.fixture
def search(search_cfg):
    from detectron2.modeling import build_model

    return build_model(search_cfg)


def one_group(search, **options):
    """The probabilities beside the weights, with options of their own."""
    probs = search.distribution.probs
    weights = [p for p in search.parameters() if p is not probs]
    usual = {"lr": 0.001, "weight_decay": 0.0, "momentum": 0.0}
    return torch.optim.SGD(
        [{"params": weights}, {"params": [probs], **usual, **options}],
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
    )


def test_detectron2s_own_optimizer_is_no_searchs(search, search_cfg):
    from detectron2.solver import build_optimizer

    before = search.distribution.probs.clone()
    message = (
        "probabilities weight decay 0.0001, allowed: 0 and momentum 0.9, allowed: 0 and the rate 0.1, allowed: the "
        "weights' times SEARCH.ARCH_LR_FACTOR 0.01: FBNetV5Trainer"
    )
    search.distribution.probs.grad = torch.ones_like(before)
    with pytest.raises(InputError, match=message):
        build_optimizer(search_cfg, search).step()
    assert torch.equal(search.distribution.probs, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, "probabilities the rate 0.1, allowed"),
        ({"momentum": 0.9}, "probabilities momentum 0.9, allowed: 0:"),
        ({"weight_decay": 1e-4}, "probabilities weight decay 0.0001, allowed: 0:"),
    ],
)
def test_each_wrong_option_of_the_probabilities_is_named(search, options, message):
    with pytest.raises(InputError, match=message):
        one_group(search, **options).step()


def test_adam_has_momentum_too(search):
    with pytest.raises(InputError, match=r"momentum 0.9, allowed: 0"):
        torch.optim.Adam(search.param_groups(0.1, 0.01)).step()


@pytest.mark.parametrize("clip", [False, True])
def test_our_optimizer_gives_the_probabilities_their_rate(search, search_cfg, clip):
    from d2go_fbnetv5.plugins.detectron2 import build_optimizer

    search_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip
    optimizer = build_optimizer(search_cfg, search)
    arch = optimizer.param_groups[-1]
    assert arch["params"][0] is search.distribution.probs
    assert (arch["lr"], arch["weight_decay"], arch["momentum"]) == (pytest.approx(0.001), 0, 0)
    assert optimizer.param_groups[0]["weight_decay"] == search_cfg.SOLVER.WEIGHT_DECAY
    for parameter in search.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    moved = 0.001 * (search_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE if clip else 5.0)
    assert search.distribution.probs.allclose(torch.tensor(0.5 - moved))


def test_loops_of_ones_own_are_let_alone(search):
    """Other rates than the configuration's, a schedule, weights by factors, an optimizer without probabilities."""
    optimizer = torch.optim.SGD(search.param_groups(0.5, 0.01), momentum=0.9)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    optimizer.step()
    search.after_step()
    one_group(search).step()
    scaled = one_group(search)
    scaled.param_groups[0]["lr"] = 0.02
    scaled.step()
    torch.optim.SGD(search.supernet.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1).step()


def test_a_forgotten_projection_is_noticed_at_the_next_step(search, search_cfg):
    from d2go_fbnetv5.plugins.detectron2 import build_optimizer

    scenes = DigitScenes("train", size=64, num_images=4)
    batch, optimizer = [scenes[i] for i in range(4)], build_optimizer(search_cfg, search)
    for _ in range(2):
        for _ in range(2):  # gradients may be accumulated
            sum(search(batch).values()).backward()
        optimizer.step()
        search.after_step()
    optimizer.step()
    search.eval()(batch)
    with pytest.raises(InputError, match=r"after_step\(\) was not called after the optimizer's step"):
        search.train()(batch)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL_EMA.ENABLED", True, "MODEL_EMA.ENABLED is True, allowed in Detectron2's trainer: False"),
        ("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.BIAS_LR_FACTOR is 2.0, allowed in Detectron2's trainer: 1.0"),
        (
            "SEARCH.ALGORITHM",
            "random",
            "SEARCH.ALGORITHM is 'random', allowed in Detectron2 and D2Go: multitask",
        ),
        (
            "TEST.PRECISE_BN.ENABLED",
            True,
            "TEST.PRECISE_BN.ENABLED is set, to True, but nothing of MODEL.META",
        ),
        ("SOLVER.OPTIMIZER", "adamw", "SOLVER.OPTIMIZER is 'adamw', allowed"),
        ("SEED", -1, "SEED is -1, allowed under Detectron2 and D2Go: 0 or more"),
        ("SEARCH.INIT_PROB", 2.0, "SEARCH.INIT_PROB is 2.0, allowed"),
    ],
)
def test_what_the_trainer_would_pass_over_is_refused(search_cfg, tmp_path, key, value, message):
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    search_cfg.OUTPUT_DIR = str(tmp_path)
    search_cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=message):
        FBNetV5Trainer(search_cfg)
    assert not list(tmp_path.iterdir())


def test_our_solver_keys_hold_for_models(cfg, tmp_path):
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "LiteRCNN", str(tmp_path)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_MULTIPLIER_OVERWRITE = "adamw", [{"backbone": 0.1}]
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.CHECKPOINT_KEEP = "WarmupPolyLR", 2
    cfg.MODEL.WEIGHTS = "somewhere.pth"
    trainer = FBNetV5Trainer(cfg)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates["weights x 0.1"] == pytest.approx(rates["weights"] / 10)
    assert trainer.model.roi_heads.num_classes == 10
    with pytest.raises(InputError, match="resume_or_load"):
        trainer.train()


@pytest.mark.parametrize(
    "kind", ["ImageClassifier", "LiteMaskFormer", "LiteRCNN", "LiteDepth", "SeveralHeads"]
)
def test_a_trainings_folder_describes_its_model(cfg, tmp_path, kind):
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    if kind == "SeveralHeads":
        det = {"score_threshold": 0.01, "max_detections": 7, "width": 0.5}
        cfg.MODEL.FBNETV5.HEAD.heads = type(cfg)({"cls": {}, "det": det, "seg": {"num_queries": 6}})
    if kind == "LiteRCNN":
        cfg.MODEL.FBNETV5.HEAD.width = 0.25
    cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = kind, str(tmp_path / "run")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.DATALOADER.NUM_WORKERS = 2, 1, 0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.01, 7
    (tmp_path / "run").mkdir()
    trainer = FBNetV5Trainer(cfg)
    trainer.train()
    if kind == "LiteRCNN":
        assert trainer.model.roi_heads.box_head.out_channels == 40
        assert trainer.model.proposal_generator.rpn_head.objectness.in_channels == 24
    (tmp_path / "run").rename(tmp_path / "moved")
    image = DigitScenes("train", size=64, num_images=1)[0]["image"]
    with torch.no_grad():
        model = from_run(tmp_path / "moved").model
        (found,), (expected,) = (m.eval()([{"image": image}]) for m in (model, trainer.model))
    if kind in ("LiteRCNN", "SeveralHeads"):
        theirs = expected.pop("instances")
        expected |= {
            "boxes": theirs.pred_boxes.tensor,
            "scores": theirs.scores,
            "labels": theirs.pred_classes,
        }
        assert len(found["boxes"]) == 7
    for name, values in expected.items():
        if kind == "LiteMaskFormer":
            values = values.argmax(0)
        torch.testing.assert_close(found[name], values, atol=1e-3, rtol=1e-4)


def test_a_set_of_the_catalog_gives_the_samples_that_our_reader_gives(detectron2, tmp_path):
    from detectron2.data.datasets import register_coco_instances

    from d2go_fbnetv5.plugins.detectron2.catalog_samples import catalog_samples

    file = write_multitask(DigitScenes("train", size=64, num_images=3), tmp_path / "data")
    index = json.loads(file.read_text())
    for annotation in index["annotations"]:
        annotation["iscrowd"] = 0
    index["annotations"][0]["iscrowd"] = 1
    index["annotations"][1]["bbox"][2] = 0  # no width
    index["annotations"][2]["bbox"][0] = -0.25  # over the border
    file.write_text(json.dumps(index))
    register_coco_instances("to_be_searched", {}, str(file), str(file.parent))
    theirs, ours = catalog_samples("to_be_searched"), CocoDetection(file, file.parent)
    assert catalog_samples("to_be_searched") is theirs
    assert theirs.info == ours.info and theirs.label_counts["boxes"] == 7  # with the one of no width
    assert (theirs.sizes == ours.sizes).all() and len(theirs) == len(ours) == 3
    for i in range(3):
        found, expected = theirs[i], ours[i]
        for name in ("image", "boxes", "box_labels", "box_is_crowd", "image_id", "height", "width"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_label_maps_of_the_catalog_are_read_and_checked(detectron2, tmp_path):
    from types import SimpleNamespace

    from d2go_fbnetv5.plugins.detectron2.catalog_samples import CatalogSamples

    pixels = np.full((4, 6, 3), 200, np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))
    record = {"file_name": str(tmp_path / "a.png"), "height": 4, "width": 6}
    record["sem_seg_file_name"] = str(tmp_path / "map.png")
    names = {"stuff_classes": ["sky", "sea"], "ignore_label": 9}
    metadata = SimpleNamespace(get=lambda key, default=None: names.get(key, default))
    samples = CatalogSamples("maps", [record], metadata)
    assert samples.info.sem_seg_names == ("sky", "sea") and samples.label_counts == {"boxes": 0, "sem_seg": 1}
    labels = np.array([[0, 1, 9, 0, 0, 1]] * 4, np.uint8)
    (tmp_path / "map.png").write_bytes(encode_png(labels))
    assert samples[0]["sem_seg"].tolist() == labels.tolist() and "boxes" not in samples[0]
    (tmp_path / "map.png").write_bytes(encode_png(labels + 1))
    with pytest.raises(InputError, match="has the value 2, allowed are 0 to 1, and 9"):
        samples[0]


def test_sets_that_the_catalog_lacks_or_that_have_turned_boxes_are_refused(search_cfg):
    from detectron2.data import DatasetCatalog
    from detectron2.structures import BoxMode

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    search_cfg.DATASETS.TRAIN = ("nowhere_train",)
    with pytest.raises(
        InputError, match="names nowhere_train: neither FBNETV5_DATA.DATASETS nor Detectron2's"
    ):
        FBNetV5Trainer(search_cfg)
    box = {"bbox": [1, 2, 3, 4, 30], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    DatasetCatalog.register(
        "turned", lambda: [{"file_name": "a.png", "height": 9, "width": 9, "annotations": [box]}]
    )
    search_cfg.DATASETS.TRAIN = ("turned",)
    with pytest.raises(
        InputError, match="the set turned has boxes of XYWHA_ABS, allowed for a search: upright"
    ):
        FBNetV5Trainer(search_cfg)


def test_sets_of_the_catalog_are_judged_by_detectron2s_evaluators(cfg, tmp_path):
    from detectron2.data.datasets import register_coco_instances

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    file = write_multitask(DigitScenes("train", size=64, num_images=2), tmp_path / "data")
    index = json.loads(file.read_text())
    for annotation in index["annotations"]:  # which the multitask format may leave out
        annotation |= {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    file.write_text(json.dumps(index))
    register_coco_instances("to_be_judged", {}, str(file), str(file.parent))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("to_be_judged",)
    cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "LiteRCNN", str(tmp_path)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATALOADER.NUM_WORKERS = 10, 0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = FBNetV5Trainer.build_model(cfg)
    assert 0 <= FBNetV5Trainer.test(cfg, model)["bbox"]["AP"] <= 100


def test_names_that_a_set_tells_when_it_is_opened_are_found(cfg):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2go_fbnetv5.plugins.detectron2.meta_arch import dataset_info

    def load():  # as D2Go's does
        MetadataCatalog.pop("renewed", None)
        MetadataCatalog.get("renewed").set(thing_classes=["box", "tri"])
        return []

    DatasetCatalog.register("renewed", load)
    cfg.DATASETS.TRAIN = ("renewed",)
    assert dataset_info(cfg).box_names == ("box", "tri")


MODULE = '''
from d2go_fbnetv5 import Task, register_task
from d2go_fbnetv5.data import DigitScenes, register_dataset


@register_dataset("scenes_of_ones_own")
def scenes():
    return DigitScenes("train", size=64, num_images=4)


@register_task("brightness")
class Brightness(Task):
    """How bright it is."""

    in_features = ("path3",)

    def __init__(self, channels, info):
        super().__init__()

    def forward(self, features, batch):
        return {"loss_brightness": features["path3"].square().mean()}
'''


def test_modules_of_ones_own_are_imported_for_their_sets_and_tasks(search_cfg, tmp_path):
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2.checks import check_run

    (tmp_path / "of_ones_own.py").write_text(MODULE)
    search_cfg.IMPORTS, search_cfg.IMPORT_FOLDERS = ["of_ones_own"], [str(tmp_path)]
    search_cfg.SEARCH.TASKS = ["brightness"]
    search_cfg.DATASETS.TRAIN = search_cfg.DATASETS.TEST = ("scenes_of_ones_own",)
    model = build_model(search_cfg)
    check_run(search_cfg)
    assert list(model.tasks) == ["brightness"]
    assert len(DatasetCatalog.get("scenes_of_ones_own")) == 4


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return Supernet("N", 7).state_dict()


def written(folder, state):
    torch.save({"model": state}, folder / "model.pth")
    return str(folder / "model.pth")


def load(model, path, own=True):
    from detectron2.checkpoint import DetectionCheckpointer

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer

    kind = FBNetV5Checkpointer if own else DetectionCheckpointer
    return kind(model).resume_or_load(path, resume=False)


@pytest.fixture
def retinanet(cfg):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_fbnetv5_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["path1", "path2", "path3"]
    return build_model(cfg)


@pytest.mark.parametrize("prefix", ["supernet.", "", "backbone."])
def test_weights_reach_the_backbone_wherever_it_is(retinanet, supernet, prefix, tmp_path):
    state = {f"{prefix}{name}": value for name, value in supernet.items()}
    load(retinanet, written(tmp_path, {**state, "tasks.cls.fc.weight": torch.zeros(1)}))
    inner = "backbone.bottom_up."
    loaded = {n.removeprefix(inner): v for n, v in retinanet.state_dict().items() if n.startswith(inner)}
    assert len(loaded) > 100
    assert all(torch.equal(value, supernet[name]) for name, value in loaded.items())


def test_detectron2s_checkpointer_cannot_pass_over_a_search(retinanet, supernet, tmp_path):
    path = written(tmp_path, {f"supernet.{name}": value for name, value in supernet.items()})
    with pytest.raises(InputError, match=r"lack (\d+) of the \1 that the network backbone.bottom_up needs"):
        load(retinanet, path, own=False)


def test_missing_and_misshapen_weights_of_the_network_are_refused(retinanet, supernet, tmp_path):
    name = "stage0.path0.0.conv.weight"
    some = {f"supernet.{key}": value for key, value in supernet.items() if key != name}
    with pytest.raises(InputError, match=rf"lack 1 of the \d+ .*\(backbone.bottom_up.{name}, ...\)"):
        load(retinanet, written(tmp_path, some))
    other = {**some, f"supernet.{name}": torch.zeros(3, 3, 3, 3)}
    with pytest.raises(InputError, match=r"is \(3, 3, 3, 3\) in the file, .* is it of another family"):
        load(retinanet, written(tmp_path, other))
    nan = {**some, f"supernet.{name}": torch.full_like(supernet[name], torch.nan)}
    with pytest.raises(InputError, match=f"'backbone.bottom_up.{name}' is not finite"):
        load(retinanet, written(tmp_path, nan))


@pytest.mark.parametrize("kind", ["ImageClassifier", "LiteMaskFormer", "LiteRCNN", "MultitaskSearch"])
def test_no_model_of_ours_starts_from_another_kind_of_file(cfg, kind, tmp_path):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE = kind
    model = build_model(cfg)
    path = written(tmp_path, {"res2.0.conv1.weight": torch.zeros(1)})
    for own in (True, False):
        with pytest.raises(InputError, match="the weights to load lack"):
            load(model, path, own)


def test_a_flipped_bit_is_noticed(retinanet, supernet, tmp_path):
    path = tmp_path / "model.pth"
    written(tmp_path, {f"supernet.{name}": value for name, value in supernet.items()})
    content = bytearray(path.read_bytes())
    weight = supernet["stage0.path0.0.conv.weight"].numpy().tobytes()
    content[content.index(weight) + len(weight) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load(retinanet, str(path))


@pytest.mark.parametrize("kind", ["ImageClassifier", "LiteMaskFormer", "LiteRCNN", "RetinaNet"])
def test_a_head_that_a_search_has_no_weights_for_is_judged_by_nobody_before_it_is_trained(
    cfg, supernet, kind, tmp_path
):
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Trainer

    cfg.MODEL.META_ARCHITECTURE = kind
    if kind == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_fbnetv5_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["path1", "path2", "path3"]
    scenes = DigitScenes("train", size=64, num_images=2)
    batch = [scenes[i] for i in range(2)]
    model = build_model(cfg)
    own = written(tmp_path, model.state_dict())
    load(model, own)
    model.eval()(batch)
    searched = {f"supernet.{name}": value for name, value in supernet.items()}
    load(model, written(tmp_path, {**searched, "tasks.cls.fc.weight": torch.zeros(1)}))
    message = r"MODEL.WEIGHTS lacks \d+ weights of the model \([a-z].*, ...\), which are random"
    for judge in (lambda: model.eval()(batch), lambda: FBNetV5Trainer.test(cfg, model)):
        with pytest.raises(InputError, match=message):
            judge()
    if kind != "RetinaNet":  # our samples are no Instances
        model.train()(batch)
        model.eval()(batch)
    load(model, written(tmp_path, model.state_dict()))
    model.eval()(batch)


def test_a_search_is_judged_by_probabilities_of_its_own_alone(search, search_cfg, supernet, tmp_path):
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer, FBNetV5Trainer

    stage0 = {f"supernet.{name}": value for name, value in supernet.items() if name.startswith("stage0.")}
    for state, what in ((stage0, "supernet.stages"), (search.state_dict(), "distribution.probs")):
        path = written(tmp_path, state)
        load(search, path)
        message = rf"lacks \d+ weights of the model \({what}.*of a search: its folder, with --resume"
        with pytest.raises(InputError, match=message):
            FBNetV5Trainer.test(search_cfg, search)
    FBNetV5Checkpointer(search, str(tmp_path)).load(path)
    assert 0 <= FBNetV5Trainer.test(search_cfg, search)["cls"]["top1"] <= 100


def test_heads_of_another_number_of_classes_may_stay(cfg, tmp_path):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "LiteRCNN", 3
    path = written(tmp_path, build_model(cfg).state_dict())
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    load(build_model(cfg), path)


def test_a_search_starts_from_anothers_weights_alone(search, search_cfg, tmp_path):
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Checkpointer

    new = build_model(search_cfg)
    with torch.no_grad():
        search.distribution.probs.fill_(0.9)
        search.iteration_count.fill_(7)
    FBNetV5Checkpointer(search, str(tmp_path)).save("model_final", iteration=7)
    load(new, str(tmp_path / "model_final.pth"))
    old = search.state_dict()
    assert all(torch.equal(old[n], v) for n, v in new.state_dict().items() if n.startswith("supernet."))
    assert new.iteration == 0
    assert new.distribution.probs.eq(0.5).all()

    FBNetV5Checkpointer(new, str(tmp_path)).resume_or_load("", resume=True)
    assert new.iteration == 7
    assert new.distribution.probs.allclose(torch.tensor(0.9))


def test_a_search_starts_from_public_weights_of_stage_0(search, supernet, tmp_path):
    """Which is all that there are; with some weights of later stages, the others must be there too."""
    stage0 = {f"supernet.{n}": v for n, v in supernet.items() if n.startswith("stage0.")}
    load(search, written(tmp_path, stage0))
    name = next(n for n in search.supernet.state_dict() if not n.startswith("stage0."))
    with pytest.raises(InputError, match="the weights to load lack"):
        load(search, written(tmp_path, {**stage0, f"supernet.{name}": supernet[name]}))


def test_a_named_topology_has_fewer_weights_than_the_supernet(detectron2, supernet):
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Backbone

    backbone = FBNetV5Backbone("N", Topology.named("linear", stages=7))
    backbone.load_supernet(supernet)
    with pytest.raises(InputError, match="FBNetV5Backbone needs"):
        backbone.load_state_dict({}, strict=False)
