"""The names that Detectron2's GeneralizedRCNN has for the weights of a Lite R-CNN."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from d2go_fbnetv5.utils.errors import InputError

RPN = "proposal_generator."  # what Detectron2's names of a detector have, and no others

_NAMES = {
    "rpn.head.": f"{RPN}rpn_head.",
    "roi_head.box_head.": "roi_heads.box_head.",
    "roi_head.predictor.classes.": "roi_heads.box_predictor.cls_score.",
    "roi_head.predictor.deltas.": "roi_heads.box_predictor.bbox_pred.",
}


def to_generalized_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of a `d2go_fbnetv5.models.LiteRCNN` as that of Detectron2's GeneralizedRCNN configured by
    the plugin's `use_lite_rcnn`; with it the two give equal outputs.

    Raises:
        ValueError: a name that a Lite R-CNN does not have.
    """
    return {_renamed(name, _NAMES): value for name, value in state.items()}


def from_generalized_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same the other way. Anchors, which Detectron2 may keep among the weights, are left out."""
    back = {theirs: ours for ours, theirs in _NAMES.items()}
    kept = {name: value for name, value in state.items() if ".anchor_generator." not in name}
    return {_renamed(name, back): value for name, value in kept.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    if name.startswith("backbone."):
        return name
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise InputError(
        f"a Lite R-CNN has no weight {name!r}; its names begin with backbone., {', '.join(names)}"
    )
