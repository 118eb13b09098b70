"""Backbones, heads and meta-architectures in Detectron2's registries."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.arch import Backbone, Supernet, Topology
from d2go_fbnetv5.data import DigitScenes, write_multitask
from d2go_fbnetv5.models import LiteRCNN

ROOT = Path(__file__).parent.parent.parent
SIZES = [(64, 64), (96, 130)]


def make_it_matter(model, seed=0):
    """Random batch norms and biases: a fresh residual block is the identity, and anything would pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_var", "bn.weight")):
                value.uniform_(0.5, 1.0, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1, generator=generator)
    return model.eval()


def test_the_pages_programs_search_and_train_under_detectron2_alone(detectron2, tmp_path):
    write_multitask(DigitScenes("train", size=96, num_images=8), tmp_path / "data")
    program = [
        sys.executable,
        str(Path(__file__).parent / "detectron2_project.py"),
        str(ROOT / "docs" / "detectron2.md"),
    ]
    run = subprocess.run(
        [*program, str(tmp_path / "data"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    words = ("trained", "refused", "predicted", "traced", "scripted", "started")
    assert [line for line in run.stdout.splitlines() if line.split(" ")[0] in words] == [
        *("trained MultitaskSearch", "refused DefaultTrainer", "refused no after_step"),
        *("trained GeneralizedRCNN", "refused DetectionCheckpointer", "predicted", "traced", "scripted"),
        *("trained RetinaNet", "started Mask R-CNN", "started SemSegFPN", "trained lazily"),
    ]


def test_backbones_by_name(cfg):
    from detectron2.modeling import build_backbone

    images = torch.randn(2, 3, 96, 64)
    cfg.MODEL.BACKBONE.NAME = "FBNetV5Supernet"
    supernet = make_it_matter(build_backbone(cfg))
    cfg.MODEL.BACKBONE.NAME = "FBNetV5Backbone"
    cfg.MODEL.FBNETV5.OUT_FEATURES = ["path1", "path3"]
    backbone = build_backbone(cfg).eval()
    backbone.load_supernet(supernet)
    assert backbone.size_divisibility == supernet.size_divisibility == 32
    assert list(supernet.output_shape()) == ["path0", "path1", "path2", "path3"]
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        "path1": 8,
        "path3": 32,
    }

    with torch.no_grad():
        features, expected = backbone(images), supernet(images, backbone.topology)
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (2, shape.channels, 96 // shape.stride, 64 // shape.stride)
        torch.testing.assert_close(features[name], expected[name], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(
            supernet(images)["path0"], Supernet.forward(supernet, images, Topology.full(7))["path0"]
        )


@pytest.mark.parametrize("family", ["A", "C"])
def test_features_under_an_fpn_have_whole_strides(cfg, family):
    """The published paddings leave some of them a cell short."""
    from d2go_fbnetv5.plugins.detectron2 import FBNetV5Backbone

    images = torch.randn(1, 3, 96, 160)
    topology = Topology.named("linear", stages=2)
    free = FBNetV5Backbone(family, topology).eval()
    exact = FBNetV5Backbone(family, topology, exact_sizes=True).eval()
    exact.load_state_dict(free.state_dict())
    with torch.no_grad():
        free, exact = free(images), exact(images)
    assert any(free[name].shape != exact[name].shape for name in free)
    for (name, feature), stride in zip(exact.items(), (4, 8, 16, 32), strict=True):
        assert feature.shape[-2:] == (96 // stride, 160 // stride)
        height, width = free[name].shape[-2:]
        assert torch.equal(feature[..., :height, :width], free[name])


def test_a_detector_converted_to_detectron2_and_back_is_the_same(cfg):
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import from_generalized_rcnn, to_generalized_rcnn, use_lite_rcnn
    from d2go_fbnetv5.plugins.detectron2.config import configured_topology

    use_lite_rcnn(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    torch.manual_seed(0)
    ours = make_it_matter(LiteRCNN(Backbone("N", configured_topology(cfg), ("path1",)), num_classes=3))
    theirs = build_model(cfg).eval()
    theirs.load_state_dict(to_generalized_rcnn(ours.state_dict()))
    for height, width in SIZES:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        with torch.no_grad():
            (expected,) = ours([{"image": image}])
            found = theirs([{"image": image}])[0]["instances"]
        assert len(expected["boxes"]) > 10
        torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, expected["scores"], atol=1e-5, rtol=0)
        assert torch.equal(found.pred_classes, expected["labels"])

    back = from_generalized_rcnn(theirs.state_dict())
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in ours.state_dict().items())
    with pytest.raises(ValueError, match="no weight 'mask_head.x'"):
        to_generalized_rcnn({"mask_head.x": torch.zeros(1)})


def test_other_search_algorithms_than_the_papers_last_are_refused(cfg):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE, cfg.SEARCH.ALGORITHM = "MultitaskSearch", "shared_forward"
    with pytest.raises(ValueError, match="'shared_forward', allowed in Detectron2 and D2Go: multitask"):
        build_model(cfg)


@pytest.mark.parametrize(
    "kind",
    [
        "SemanticSegmentor",
        "LiteMaskFormer",
        "ImageClassifier",
        "LiteRCNN",
        "LiteDepth",
        "SeveralHeads",
        "MultitaskSearch",
    ],
)
def test_meta_architectures_train_and_predict(cfg, kind):
    from detectron2.data import build_detection_test_loader, build_detection_train_loader
    from detectron2.evaluation import inference_on_dataset
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from d2go_fbnetv5.plugins.detectron2 import SampleEvaluator, SampleMapper, register_datasets

    register_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE = kind
    cfg.MODEL.BACKBONE.NAME = "FBNetV5Backbone"
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "LiteMaskFormerHead", 11
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    cfg.MODEL.FBNETV5.NUM_STAGES, cfg.SEARCH.SAMPLES_PER_RANK = 2, 2
    cfg.SEARCH.COST.SIZE = [64, 64]
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 4, 0
    if kind == "SeveralHeads":
        cfg.MODEL.FBNETV5.HEAD.heads = type(cfg)({"cls": {}, "det": {}, "depth": {"dim": 16}})
    torch.manual_seed(0)
    model = build_model(cfg)
    loader = build_detection_train_loader(cfg, mapper=SampleMapper.from_config(cfg))
    with EventStorage(0):
        losses = model(next(iter(loader)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad) or kind == "MultitaskSearch"

    tests = build_detection_test_loader(
        cfg, "digit_scenes_val", mapper=SampleMapper.from_config(cfg, is_train=False)
    )
    from detectron2.data import MetadataCatalog

    info = MetadataCatalog.get("digit_scenes_val").info
    results = inference_on_dataset(model, tests, SampleEvaluator.for_info(info))
    metrics = {
        "SemanticSegmentor": "seg",
        "LiteMaskFormer": "seg",
        "ImageClassifier": "cls",
        "LiteRCNN": "det",
        "LiteDepth": "depth",
    }
    several = ["cls", "det", "depth"] if kind == "SeveralHeads" else ["cls", "det", "seg"]
    assert list(results) == ([metrics[kind]] if kind in metrics else several)
    # Of what there is none of, such as large objects, it is NaN.
    shares = [
        value for task in results.values() for name, value in task.items() if name not in ("AbsRel", "RMSE")
    ]
    assert not any(value < 0 or value > 1 for value in shares)


def test_mask_former_under_detectron2_predicts_what_it_does_elsewhere(cfg):
    from detectron2.modeling import build_model

    from d2go_fbnetv5.models import LiteMaskFormer

    cfg.MODEL.META_ARCHITECTURE = "LiteMaskFormer"
    model = make_it_matter(build_model(cfg))
    image = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    with torch.no_grad():
        (scores,) = model([{"image": image}])
        (expected,) = LiteMaskFormer.predict(model, [{"image": image}])
        (rescaled,) = model([{"image": image, "height": 140, "width": 200}])
    assert scores["sem_seg"].shape == (11, 70, 100)
    assert torch.equal(scores["sem_seg"].argmax(0), expected["sem_seg"])
    assert rescaled["sem_seg"].shape == (11, 140, 200)


def test_unlabelled_images_have_no_part_in_the_detectors_loss(cfg):
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    cfg.MODEL.META_ARCHITECTURE = "LiteRCNN"
    model = build_model(cfg)
    with EventStorage(0):
        losses = model([{"image": torch.zeros(3, 64, 64)}])
    assert len(losses) == 4
    assert not any(losses.values())


@pytest.mark.parametrize("kind", ["LiteRCNN", "GeneralizedRCNN"])
def test_a_width_out_of_range_is_named(cfg, kind):
    from detectron2.modeling import build_model

    from d2go_fbnetv5.plugins.detectron2 import use_lite_rcnn

    use_lite_rcnn(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FBNETV5.HEAD.width = kind, 9.0
    with pytest.raises(ValueError, match="'width' of MODEL.FBNETV5.HEAD is 9.0, allowed: 0.05 or more"):
        build_model(cfg)


def test_a_segmenters_matching_is_an_option_here_too(cfg):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FBNETV5.HEAD.matching = "LiteMaskFormer", "fixed"
    assert build_model(cfg).loss.matching == "fixed"
    cfg.MODEL.FBNETV5.HEAD.matching = "best"
    with pytest.raises(ValueError, match="'matching' is best, allowed: bipartite, fixed"):
        build_model(cfg)


def test_the_head_of_detectron2s_segmentor_has_the_models_options(cfg):
    from detectron2.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "SemanticSegmentor", "FBNetV5Backbone"
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "LiteMaskFormerHead", 11
    assert build_model(cfg).sem_seg_head.loss.matching == "bipartite"
    options = {"matching": "fixed", "dim": 64, "num_queries": 12, "num_layers": 2, "auxiliary_loss": False}
    cfg.MODEL.FBNETV5.HEAD = type(cfg)(options)
    head = build_model(cfg).sem_seg_head
    assert head.loss.matching == "fixed" and head.pixel_decoder.conv.out_channels == 64
    features = {name: torch.rand(1, channels, 8, 8) for name, channels in _channels(head).items()}
    assert head.eval()(features)[0].shape == (1, 11, 64, 64)
    # The first of two layers is not scored, as it is not in our own model.
    _, losses = head.train()(features, torch.zeros(1, 64, 64, dtype=torch.int64))
    assert sorted(losses) == ["loss_class", "loss_dice", "loss_mask"]
    cfg.MODEL.FBNETV5.HEAD = type(cfg)({"width": 0.5})
    with pytest.raises(ValueError, match="MODEL.FBNETV5.HEAD has no option 'width'; its options are"):
        build_model(cfg)


def _channels(head):
    return {
        "path1": head.pixel_decoder.conv.in_channels,
        "path3": head.transformer_decoder.input_projection.in_channels,
    }


def test_sets_of_the_configuration_in_the_catalogs(cfg, tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2go_fbnetv5.plugins.detectron2 import register_datasets

    scenes = DigitScenes("train", size=64, num_images=3)
    options = {"READER": "multitask", "index": str(write_multitask(scenes, tmp_path / "a"))}
    cfg.FBNETV5_DATA.DATASETS.pseudo_labelled = type(cfg)(options)
    DatasetCatalog.register("somebody_elses", list)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("pseudo_labelled",), ("somebody_elses",)
    register_datasets(cfg)
    dataset, metadata = DatasetCatalog.get("pseudo_labelled"), MetadataCatalog.get("pseudo_labelled")
    assert len(dataset) == 3
    assert torch.equal(dataset[1]["image"], scenes[1]["image"])
    assert metadata.info == scenes.info
    assert metadata.thing_classes == list(scenes.info.box_names)
    assert metadata.stuff_classes == list(scenes.info.sem_seg_names)
    assert DatasetCatalog.get("pseudo_labelled") is dataset

    more = DigitScenes("train", size=64, num_images=5)
    cfg.FBNETV5_DATA.DATASETS.pseudo_labelled.index = str(write_multitask(more, tmp_path / "b"))
    register_datasets(cfg)
    assert len(DatasetCatalog.get("pseudo_labelled")) == 5
    assert DatasetCatalog.get("somebody_elses") == []


def test_crowds_and_flat_boxes_are_not_trained_on(detectron2):
    from d2go_fbnetv5.plugins.detectron2.samples import to_detectron2, to_sample

    sample = {
        "image": torch.zeros(3, 8, 9, dtype=torch.uint8),
        "height": 80,
        "width": 90,
        "boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 2, 7]]),
        "box_labels": torch.tensor([1, 2, 3]),
        "box_is_crowd": torch.tensor([False, True, False]),
    }
    data = to_detectron2(sample, training=True)
    assert (data["height"], data["width"]) == (8, 9)
    assert data["instances"].gt_classes.tolist() == [1]
    assert len(to_detectron2(sample, training=False)["instances"]) == 3

    del data["boxes"], data["box_labels"]
    assert to_sample(data, torch.device("cpu"))["boxes"].tolist() == [[0, 0, 4, 4]]


def test_predictions_are_judged_in_the_originals_pixels(detectron2):
    """The image is half as large; Detectron2 gives boxes and maps of the original's size."""
    import numpy as np
    from detectron2.structures import Boxes, Instances

    from d2go_fbnetv5.plugins.detectron2 import SampleEvaluator
    from d2go_fbnetv5.tasks import DatasetInfo

    truth = torch.zeros(64, 96, dtype=torch.int64)
    truth[10:31, 20:61] = 1
    sample = {
        "image": torch.zeros(3, 32, 48, dtype=torch.uint8),
        "image_id": 1,
        "height": 64,
        "width": 96,
        "boxes": torch.tensor([[20.0, 10.0, 61.0, 31.0]]),
        "box_labels": torch.tensor([0]),
        "box_areas": np.array([500.0]),
        "sem_seg": truth,
    }
    found = Instances((64, 96))
    found.pred_boxes = Boxes(torch.tensor([[20.0, 10.0, 61.0, 31.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    scores = torch.stack([1.0 - truth.float(), truth.float()])
    evaluator = SampleEvaluator.for_info(DatasetInfo(box_names=("a",), sem_seg_names=("none", "some")))
    evaluator.reset()
    evaluator.process([sample], [{"instances": found, "sem_seg": scores}])
    results = evaluator.evaluate()
    assert results["det"]["AP"] == pytest.approx(1)
    assert results["det"]["APs"] == pytest.approx(1)  # by the mask's area of 500 pixels, not the box's 861
    assert results["seg"]["mIoU"] == 1


def test_without_labels_there_is_no_metric_of_0(detectron2, caplog):
    """Detectron2's own mapper for evaluation leaves the labels out."""
    from detectron2.structures import Boxes, Instances

    from d2go_fbnetv5.plugins.detectron2 import SampleEvaluator
    from d2go_fbnetv5.tasks import DatasetInfo
    from d2go_fbnetv5.tasks.gather import warn_unlabelled

    data = {"image": torch.zeros(3, 32, 48), "image_id": 1, "height": 64, "width": 96}
    found = Instances((64, 96), pred_boxes=Boxes(torch.tensor([[20.0, 10.0, 61.0, 31.0]])))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    evaluator = SampleEvaluator.for_info(DatasetInfo(box_names=("a",), sem_seg_names=("none", "some")))
    evaluator.reset()
    evaluator.process([data], [{"instances": found, "sem_seg": torch.zeros(2, 64, 96)}])
    warn_unlabelled.cache_clear()
    results = evaluator.evaluate()
    for value in (*results["det"].values(), *results["seg"].values()):
        assert value != value
    assert "boxes" in caplog.text
