"""Importing this registers the backbones, heads and meta-architectures with Detectron2.

    from d2go_fbnetv5.plugins.detectron2 import add_fbnetv5_config, use_lite_rcnn

Data sets of FBNETV5_DATA enter Detectron2's catalogs by `register_datasets(cfg)`; `SampleMapper` reads them.
"""

from d2go_fbnetv5.plugins.detectron2.backbones import FBNetV5Backbone, FBNetV5Supernet
from d2go_fbnetv5.plugins.detectron2.config import add_fbnetv5_config, use_lite_rcnn
from d2go_fbnetv5.plugins.detectron2.convert import from_generalized_rcnn, to_generalized_rcnn
from d2go_fbnetv5.plugins.detectron2.datasets import SampleMapper, register_datasets
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator
from d2go_fbnetv5.plugins.detectron2.heads import (
    LiteMaskFormerHead,
    LiteRoIBoxHead,
    LiteRPNHead,
    RoundedAnchorGenerator,
)
from d2go_fbnetv5.plugins.detectron2.meta_arch import ImageClassifier, LiteMaskFormer, MultitaskSearch
from d2go_fbnetv5.plugins.detectron2.rcnn import LiteRCNN

__all__ = [
    "FBNetV5Backbone",
    "FBNetV5Supernet",
    "ImageClassifier",
    "LiteMaskFormer",
    "LiteMaskFormerHead",
    "LiteRCNN",
    "LiteRPNHead",
    "LiteRoIBoxHead",
    "MultitaskSearch",
    "RoundedAnchorGenerator",
    "SampleEvaluator",
    "SampleMapper",
    "add_fbnetv5_config",
    "from_generalized_rcnn",
    "register_datasets",
    "to_generalized_rcnn",
    "use_lite_rcnn",
]
