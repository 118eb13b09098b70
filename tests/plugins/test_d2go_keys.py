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
