"""What the examples have in common: digit scenes, and the training as Detectron2's lazyconfig_train_net.py reads it."""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from d2go_fbnetv5.data import DigitScenes, EvalTransform, TrainTransform
from d2go_fbnetv5.plugins.detectron2 import FBNetV5Backbone, SampleMapper, sample_evaluator, searched_topology

FAMILY = "N"
NORMALIZATION = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}  # RGB


def searched_backbone(task, outputs):
    """What `make demo` found."""
    topology = L(searched_topology)(path="output/demo/topologies.json", task=task)
    return L(FBNetV5Backbone)(family=FAMILY, topology=topology, outputs=outputs)


def digit_scenes(size, batch_size):
    """Training images are crops of this size of larger ones."""
    larger = size * 13 // 12
    dataloader = OmegaConf.create()
    dataloader.train = L(build_detection_train_loader)(
        dataset=L(DigitScenes)(split="train", size=larger, num_images=65536),
        mapper=L(SampleMapper)(
            transform=L(TrainTransform)(short_side=larger, crop=size, flip=0.0), is_train=True
        ),
        total_batch_size=batch_size,
        num_workers=0,
    )
    dataloader.test = L(build_detection_test_loader)(
        dataset=L(DigitScenes)(split="val", size=size, num_images=512),
        mapper=L(SampleMapper)(transform=L(EvalTransform)(short_side=None), is_train=False),
        num_workers=0,
    )
    dataloader.evaluator = L(sample_evaluator)(dataset="${..test.dataset}")
    return dataloader


def adamw(rate):
    return L(torch.optim.AdamW)(
        params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
        lr=rate,
        weight_decay=0.05,
    )


lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.05,
    warmup_factor=0.01,
)
train = {
    "output_dir": "output/lazy",
    "init_checkpoint": "output/demo/model_final.pth",  # the search's; FBNetV5Checkpointer reads it
    "max_iter": 1500,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 500, "max_to_keep": 3},
    "eval_period": 500,
    "log_period": 20,
    "device": "cpu",
}
