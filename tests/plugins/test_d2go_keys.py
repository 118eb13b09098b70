"""D2Go's keys that our models and data sets cannot follow, and its drawings of what they can."""

import pytest
import torch

from d2go_fbnetv5.utils.errors import InputError


@pytest.fixture
def runner_cfg(d2go):
    from d2go_fbnetv5.runner import FBNetV5Runner

    cfg = FBNetV5Runner.get_default_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.SEED = "ImageClassifier", "cpu", 0
    cfg.MODEL.FBNETV5.FAMILY = "N"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_scenes_train",), ("digit_scenes_val",)
    return cfg


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["QUANTIZATION.EAGER_MODE", False],
            "QUANTIZATION.EAGER_MODE is False, allowed for ImageClassifier: True",
        ),
        (
            ["QUANTIZATION.QAT.ENABLED", True, "MODEL_EMA.ENABLED", True],
            "MODEL_EMA.ENABLED is True, allowed with QUANTIZATION.QAT.ENABLED: False",
        ),
        (
            ["QUANTIZATION.QAT.ENABLED", True, "MODEL.META_ARCHITECTURE", "MultitaskSearch"],
            "QUANTIZATION.QAT.ENABLED is True, allowed for a search: False",
        ),
        (
            ["QUANTIZATION.QAT.ENABLED", True, "MODEL.META_ARCHITECTURE", "LiteDepth"],
            "QUANTIZATION.QAT.ENABLED is True, allowed for a LiteDepth: False",
        ),
        (
            ["D2GO_DATA.AUG_OPS.TRAIN", ["RandomFlipOp"]],
            r"D2GO_DATA.AUG_OPS.TRAIN is \['RandomFlipOp'\], allowed for digit_scenes_train: the default",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(runner_cfg, settings, message):
    from d2go_fbnetv5.plugins.d2go.checks import check_d2go

    check_d2go(runner_cfg)
    runner_cfg.merge_from_list(settings)
    with pytest.raises(InputError, match=message):
        check_d2go(runner_cfg)


class Writer:
    """TensorBoard's, which keeps what it is given."""

    def __init__(self):
        self._writer, self.images = self, {}

    def add_image(self, tag, image, step, dataformats):
        self.images[tag] = image


def test_test_images_of_our_sets_are_drawn_with_labels_and_predictions(runner_cfg):
    from detectron2.data import DatasetCatalog
    from detectron2.structures import Boxes, Instances

    from d2go_fbnetv5.plugins.d2go.visualization import visualization_evaluator
    from d2go_fbnetv5.plugins.detectron2 import register_datasets

    runner_cfg.FBNETV5_DATA.DATASETS.digit_scenes_val = type(runner_cfg)({"size": 64, "num_images": 3})
    runner_cfg.TENSORBOARD.TEST_VIS_MAX_IMAGES = 2
    register_datasets(runner_cfg)
    samples = [DatasetCatalog.get("digit_scenes_val")[i] for i in range(3)]
    empty = Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    outputs = [
        {"class_scores": torch.eye(10)[3]},
        {"sem_seg": torch.nn.functional.one_hot(samples[1]["sem_seg"].long(), 11).permute(2, 0, 1)},
        {"instances": empty},
    ]
    writer = Writer()
    drawings = visualization_evaluator(runner_cfg, writer, None, "digit_scenes_val", tag_postfix="/ema")
    for sample, output in zip(samples, outputs, strict=True):
        drawings.process([sample], [output])
    ids = [sample["image_id"] for sample in samples[:2]]
    assert list(writer.images) == [f"digit_scenes_val/ema/{i}/{kind}" for i in ids for kind in ("GT", "Pred")]
    for image in writer.images.values():
        assert image.shape[2] == 3
        assert image.std() > 1
    assert drawings.predictions(samples[2], outputs[2]).any()


@pytest.fixture
def judged_cfg(runner_cfg, tmp_path):
    options = type(runner_cfg)({"size": 64, "num_images": 8})
    runner_cfg.FBNETV5_DATA.DATASETS.digit_scenes_train = options
    runner_cfg.FBNETV5_DATA.DATASETS.digit_scenes_val = options
    runner_cfg.INPUT.FORMAT = "RGB"
    runner_cfg.INPUT.MIN_SIZE_TRAIN, runner_cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    runner_cfg.MODEL_EMA.ENABLED, runner_cfg.SOLVER.IMS_PER_BATCH = True, 4
    runner_cfg.DATALOADER.NUM_WORKERS, runner_cfg.OUTPUT_DIR = 0, str(tmp_path)
    return runner_cfg


def judge(cfg):
    """What D2Go's --eval-only does."""
    from d2go_fbnetv5.runner import FBNetV5Runner

    runner = FBNetV5Runner()
    runner._initialize(cfg)
    model = runner.build_model(cfg)
    runner.build_checkpointer(cfg, model, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    return runner.do_test(cfg, model.eval())


def test_nothing_is_judged_that_was_never_trained(judged_cfg):
    for enabled in (True, False):
        judged_cfg.MODEL_EMA.ENABLED = enabled
        with pytest.raises(InputError, match="MODEL.WEIGHTS lacks .*, which are random"):
            judge(judged_cfg)


@pytest.mark.parametrize("kind", ["ImageClassifier", "LiteRCNN"])
def test_averaged_weights_of_our_own_trainer_are_judged_beside_the_others(judged_cfg, tmp_path, kind):
    from d2go_fbnetv5.arch import Backbone
    from d2go_fbnetv5.engine.ema import EMA
    from d2go_fbnetv5.models import ImageClassifier, LiteRCNN
    from d2go_fbnetv5.plugins.detectron2.config import configured_topology
    from d2go_fbnetv5.runner import FBNetV5Runner

    judged_cfg.MODEL.META_ARCHITECTURE = kind
    build, output = (ImageClassifier, "path3") if kind == "ImageClassifier" else (LiteRCNN, "path1")
    ours = build(Backbone("N", configured_topology(judged_cfg), (output,)), num_classes=10)
    average = EMA(ours)
    with torch.no_grad():
        for weight in average.module.parameters():
            weight.add_(1e-3)
    judged_cfg.MODEL.WEIGHTS = str(tmp_path / "ours.pth")
    torch.save({"model": ours.state_dict()}, judged_cfg.MODEL.WEIGHTS)
    with pytest.raises(InputError, match="MODEL_EMA.ENABLED is True, .* without averaged weights: False"):
        judge(judged_cfg)

    torch.save({"model": ours.state_dict(), "ema": average.state_dict()}, judged_cfg.MODEL.WEIGHTS)
    assert set(judge(judged_cfg)) == {"default", "ema"}
    judged_cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY = True
    model = FBNetV5Runner().build_model(judged_cfg, eval_only=True)
    expected = average.module.backbone.state_dict()
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in expected.items())
