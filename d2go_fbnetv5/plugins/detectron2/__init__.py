"""Importing this registers the backbones, heads and meta-architectures with Detectron2.

    from d2go_fbnetv5.plugins.detectron2 import add_fbnetv5_config, use_lite_rcnn

`FBNetV5Trainer` trains a search and what it found. Data sets of FBNETV5_DATA enter Detectron2's catalogs by
`register_datasets(cfg)`; `SampleMapper` reads them.
"""

from d2go_fbnetv5.models.detectron2_names import from_generalized_rcnn, to_generalized_rcnn
from d2go_fbnetv5.plugins.detectron2.backbones import FBNetV5Backbone, FBNetV5Supernet
from d2go_fbnetv5.plugins.detectron2.checkpoint import FBNetV5Checkpointer
from d2go_fbnetv5.plugins.detectron2.config import add_fbnetv5_config, use_lite_rcnn
from d2go_fbnetv5.plugins.detectron2.datasets import SampleMapper, register_datasets
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator
from d2go_fbnetv5.plugins.detectron2.heads import (
    LiteMaskFormerHead,
    LiteRoIBoxHead,
    LiteRPNHead,
    RoundedAnchorGenerator,
)
from d2go_fbnetv5.plugins.detectron2.lazy import sample_evaluator, searched_topology
from d2go_fbnetv5.plugins.detectron2.meta_arch import (
    ImageClassifier,
    LiteDepth,
    LiteMaskFormer,
    MultitaskSearch,
    SeveralHeads,
)
from d2go_fbnetv5.plugins.detectron2.rcnn import LiteRCNN
from d2go_fbnetv5.plugins.detectron2.solver import build_optimizer
from d2go_fbnetv5.plugins.detectron2.trainer import FBNetV5Trainer

__all__ = [
    "FBNetV5Backbone",
    "FBNetV5Checkpointer",
    "FBNetV5Supernet",
    "FBNetV5Trainer",
    "ImageClassifier",
    "LiteDepth",
    "LiteMaskFormer",
    "LiteMaskFormerHead",
    "LiteRCNN",
    "LiteRPNHead",
    "LiteRoIBoxHead",
    "MultitaskSearch",
    "RoundedAnchorGenerator",
    "SampleEvaluator",
    "SampleMapper",
    "SeveralHeads",
    "add_fbnetv5_config",
    "build_optimizer",
    "from_generalized_rcnn",
    "register_datasets",
    "sample_evaluator",
    "searched_topology",
    "to_generalized_rcnn",
    "use_lite_rcnn",
]
