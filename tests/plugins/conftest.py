"""Hosts are imported once, and where they are missing the tests that need them are skipped with that reason.

D2Go is tested through our stand-ins where packages no longer have what it asks for.
"""

import os
import sys
from unittest import mock

import pytest

from d2go_fbnetv5.plugins.stand_ins import install_stand_ins


def _import(name: str) -> str | None:
    """None, or why the host cannot be used."""
    try:
        # mobile_cv asks for stdin's file descriptor when it is imported, which pytest's stand-in does not have.
        with open(os.devnull) as null, mock.patch.object(sys, "stdin", null):
            __import__(name)
    except ImportError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def detectron2():
    reason = _import("detectron2.modeling")
    if reason:
        pytest.skip(f"Detectron2 is not installed (it is not on PyPI): {reason}")


@pytest.fixture(scope="session")
def d2go(detectron2):
    install_stand_ins()
    reason = _import("d2go.runner")
    if reason:
        pytest.skip(f"D2Go is not installed (it is not on PyPI): {reason}")


@pytest.fixture
def cfg(detectron2):
    from detectron2.config import get_cfg

    from d2go_fbnetv5.plugins.detectron2 import add_fbnetv5_config

    cfg = get_cfg()
    add_fbnetv5_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FBNETV5.FAMILY = "N"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_scenes_train",), ("digit_scenes_val",)
    options = type(cfg)({"size": 64, "num_images": 8})
    cfg.FBNETV5_DATA.DATASETS.digit_scenes_train = cfg.FBNETV5_DATA.DATASETS.digit_scenes_val = options
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SEED = 0
    return cfg
