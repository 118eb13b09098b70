from pathlib import Path

import pytest
import torch
from torch import nn

from d2go_fbnetv5.data import ClassifyTransform, TrainTransform, build_dataset
from d2go_fbnetv5.engine import config
from d2go_fbnetv5.engine.build import (
    build_clipping,
    build_data,
    build_lr_schedule,
    build_param_groups,
    build_transforms,
)
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import prepare
from d2go_fbnetv5.reports.models import metrics_tables

CONFIGS = Path(config.__file__).parents[2] / "configs"
CONFIGS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("_") and path.parent.name != "pseudo_label"  # which have keys of their own
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_is_valid_at_any_number_of_processes(name, tmp_path):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    if "digits" in name or "fashion" in name:  # which name what a search of the user's has found
        opts += ["MODEL.FBNETV5.TOPOLOGY", "", "MODEL.FBNETV5.TOPOLOGY_TASK", ""]
    cfg = load_cfg(name, opts)
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE or 1
    written = prepare(cfg, reference)
    assert written.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER
    one = prepare(cfg, 1)
    seen = one.SOLVER.MAX_ITER * one.SOLVER.IMS_PER_BATCH
    assert seen == pytest.approx(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH, rel=1e-3)


def rate(name, *iterations):
    cfg = load_cfg(name)
    schedule = build_lr_schedule(cfg)
    return [cfg.SOLVER.BASE_LR * schedule(i / cfg.SOLVER.MAX_ITER) for i in iterations]


def test_the_papers_rates():
    # Classification: 0.01 at first, then 4.0 times 0.9875 each epoch; an epoch is 312.8 steps of 4096 images.
    epoch = 1281167 / 4096
    first, after, later = rate("cls/fbnetv5_a_cls.yaml", 0, round(12.5 * epoch), round(13.5 * epoch))
    assert first == pytest.approx(0.01, rel=0.2)
    assert after == pytest.approx(4.0 * 0.9875**12)
    assert later / after == pytest.approx(0.9875)
    assert rate("det/fbnetv5_a_det_224.yaml", 1000, 139999, 140000) == pytest.approx([0.16, 0.16, 0.016])
    half = rate("seg/fbnetv5_a_seg.yaml", 0, 160000)
    assert half == pytest.approx([1e-4, 1e-4 * 0.5**0.9])


def test_the_papers_sizes():
    det = load_cfg("det/fbnetv5_a_c_det_320.yaml")
    train, evaluation = build_transforms(det)
    image = torch.zeros(3, 300, 900, dtype=torch.uint8)
    sample = {"image": image, "image_id": 0, "height": 300, "width": 900}
    assert evaluation(sample)["image"].shape == (3, 213, 640)
    assert train(sample, 0)["image"].shape == (3, 213, 640)
    seg = load_cfg("seg/fbnetv5_f_seg.yaml")
    assert (min(seg.INPUT.MIN_SIZE_TRAIN), max(seg.INPUT.MIN_SIZE_TRAIN)) == (256, 1024)
    train, evaluation = build_transforms(seg)
    assert isinstance(train, TrainTransform) and train(sample, 0)["image"].shape == (3, 512, 512)
    train, evaluation = build_transforms(load_cfg("cls/fbnetv5_a_r_cls.yaml"))
    assert isinstance(train, ClassifyTransform) and train(sample, 0)["image"].shape == (3, 160, 160)
    assert evaluation(sample)["image"].shape == (3, 160, 160)


def test_rates_and_decays_of_groups():
    cfg = load_cfg("seg/fbnetv5_a_seg.yaml", ["SOLVER.WEIGHT_DECAY_NORM", "0.5"])
    model = nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)),
            "head": nn.Linear(1, 1),
            "queries": nn.Embedding(2, 1),
        }
    )
    groups = {
        g["name"]: (len(g["params"]), g["lr"], g["weight_decay"]) for g in build_param_groups(cfg, model)
    }
    assert groups == {
        "weights": (2, 1e-4, 1e-4),
        "weights x 0.1": (2, pytest.approx(1e-5), 1e-4),
        "norms x 0.1": (2, pytest.approx(1e-5), 0.5),
        "embeddings": (1, 1e-4, 0.0),
    }
    frozen = model["head"].requires_grad_(False)
    assert sum(len(g["params"]) for g in build_param_groups(cfg, model)) == 5 and frozen is model["head"]


def test_clipping_of_the_whole_model():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for weight, gradient in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.tensor([gradient])
    build_clipping(load_cfg("seg/fbnetv5_a_seg.yaml"))(weights)
    assert [float(w.grad) for w in weights] == pytest.approx([0.006, 0.008], rel=1e-3)


@pytest.mark.parametrize(("opts", "grouped"), [([], False), (["INPUT.CROP.ENABLED", "False"], True)])
def test_batches_are_grouped_where_images_keep_their_shape(opts, grouped):
    cfg = load_cfg("det/det_digits.yaml", opts)
    assert build_data(cfg, 0).group_by_orientation is grouped


def test_a_set_to_train_on_and_to_judge_by_is_opened_once():
    cfg = load_cfg("det/det_digits.yaml", ["DATASETS.TEST", "['digit_scenes_train']"])
    opened = []

    def open_set(cfg, name):
        opened.append(name)
        return build_dataset(name, size=64, num_images=2)

    data = build_data(cfg, 0, open_set)
    assert opened == ["digit_scenes_train"] and data.test_set is data.train_set


def test_tables_name_every_metric_once():
    metrics = {"AP": 0.25, "AP-cat": 0.5, "AP-hot-dog": 0.0, "ema/AP": 0.75, "ema/AP-cat": 1.0}
    headline, table, classes = metrics_tables(metrics, "LiteRCNN", 1, 3, 90)
    assert str(headline) == "LiteRCNN: 1 image after 3 iterations in 1 min 30 s"
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["model", "averaged weights"], ["0.250", "0.750"]]
    assert [list(map(str, column.cells)) for column in classes.columns] == [
        ["cat", "hot-dog"],
        ["0.500", "0.000"],
        ["1.000", "–"],
    ]
    many = {"mIoU": 0.5, **{f"IoU-{k}": 0.5 for k in range(150)}}
    assert len(metrics_tables(many, "LiteMaskFormer", 2, 3, 90)) == 2
