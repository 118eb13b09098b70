"""Our keys in a Detectron2 configuration, and Detectron2's keys set to the paper's heads."""

from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch import PATHS, Topology
from d2go_fbnetv5.engine.keys import KEYS
from d2go_fbnetv5.engine.recipes.models import searched_topology
from d2go_fbnetv5.utils.rules import Key, Rule, add_keys

_TASKS = {"ImageClassifier": "cls", "LiteMaskFormer": "seg", "SemanticSegmentor": "seg"}
OUT_FEATURES = Key(
    "MODEL.FBNETV5.OUT_FEATURES",
    list(PATHS),
    Rule(f"some of {', '.join(PATHS)}", texts=True),
    "Features of the searched backbone; blocks that none of them needs are left out.",
)


def add_fbnetv5_config(cfg: CfgNode) -> None:
    """Add FBNetV5's keys to a configuration of Detectron2 or D2Go, in place."""
    add_keys(cfg, (*KEYS.values(), OUT_FEATURES))


def use_lite_rcnn(cfg: CfgNode) -> None:
    """Make Detectron2's GeneralizedRCNN the paper's Lite R-CNN (Appendix G.2) on the searched backbone, in place.

    Only Detectron2's own keys are changed. MODEL.META_ARCHITECTURE, Detectron2's default of which is
    GeneralizedRCNN, the numbers of classes and the images' mean and deviation stay as they are.
    """
    model = cfg.MODEL
    model.BACKBONE.NAME = "FBNetV5Backbone"
    model.FBNETV5.OUT_FEATURES = ["path1"]
    model.ANCHOR_GENERATOR.NAME = "RoundedAnchorGenerator"
    model.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    model.PROPOSAL_GENERATOR.NAME = "RPN"
    model.RPN.HEAD_NAME = "LiteRPNHead"
    model.RPN.IN_FEATURES = ["path1"]
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN = 2000, 1000
    model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = 1000, 30
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["path1"]
    model.ROI_BOX_HEAD.NAME = "LiteRoIBoxHead"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 6


def configured_topology(cfg: CfgNode) -> Topology:
    """MODEL.FBNETV5.TOPOLOGY's entry of MODEL.FBNETV5.TOPOLOGY_TASK, by default the one for the task of
    MODEL.META_ARCHITECTURE ("det" for all that we don't know), within MODEL.FBNETV5.BUDGET for the backbone of
    OUT_FEATURES; the built-in one where there is no file.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of that task or budget.
    """
    options = cfg.MODEL.FBNETV5
    return searched_topology(cfg, {_TASKS.get(cfg.MODEL.META_ARCHITECTURE, "det"): options.OUT_FEATURES})
