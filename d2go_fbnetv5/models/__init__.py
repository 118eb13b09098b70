"""Models for the tasks: a searched backbone with the paper's heads (Appendices F.2 and G)."""

from d2go_fbnetv5.models.base import SearchedModel
from d2go_fbnetv5.models.image_classifier import ImageClassifier
from d2go_fbnetv5.models.lite_depth import DepthDecoder, LiteDepth
from d2go_fbnetv5.models.lite_heads import BoxPredictor, LiteBoxHead, LiteRPNHead
from d2go_fbnetv5.models.lite_maskformer import LiteMaskFormer, PixelDecoder, SegmentationModule
from d2go_fbnetv5.models.lite_rcnn import LiteRCNN
from d2go_fbnetv5.models.search_heads import ModelHead
from d2go_fbnetv5.models.several_heads import MODELS, SeveralHeads
from d2go_fbnetv5.models.transformer_decoder import TransformerDecoder

__all__ = [
    "MODELS",
    "BoxPredictor",
    "DepthDecoder",
    "ImageClassifier",
    "LiteBoxHead",
    "LiteDepth",
    "LiteMaskFormer",
    "LiteRCNN",
    "LiteRPNHead",
    "ModelHead",
    "PixelDecoder",
    "SearchedModel",
    "SegmentationModule",
    "SeveralHeads",
    "TransformerDecoder",
]
