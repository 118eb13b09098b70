"""Importing this registers the meta-architectures, mappers, hooks and scaling rules with D2Go, and with Detectron2."""

import torch
from d2go.trainer.api import TestNetOutput, TrainNetOutput

import d2go_fbnetv5.plugins.d2go.config  # noqa: F401 (registers the scaling)
import d2go_fbnetv5.plugins.d2go.hooks  # noqa: F401
import d2go_fbnetv5.plugins.d2go.quantization  # noqa: F401
from d2go_fbnetv5.plugins.d2go.meta_arch import (
    ImageClassifier,
    LiteDepth,
    LiteMaskFormer,
    LiteRCNN,
    MultitaskSearch,
    SeveralHeads,
)
from d2go_fbnetv5.plugins.d2go.runners import FBNetV5Runner, MultitaskSearchRunner

# D2Go's launcher reads its workers' results by torch.load, which refuses classes that it has not been told of.
torch.serialization.add_safe_globals([TrainNetOutput, TestNetOutput])

__all__ = [
    "FBNetV5Runner",
    "ImageClassifier",
    "LiteDepth",
    "LiteMaskFormer",
    "LiteRCNN",
    "MultitaskSearch",
    "MultitaskSearchRunner",
    "SeveralHeads",
]
