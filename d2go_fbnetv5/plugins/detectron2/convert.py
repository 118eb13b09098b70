"""A detector's weights between `d2go_fbnetv5.models.LiteRCNN` and Detectron2's GeneralizedRCNN."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_NAMES = {
    "rpn.head.": "proposal_generator.rpn_head.",
    "roi_head.box_head.": "roi_heads.box_head.",
    "roi_head.predictor.classes.": "roi_heads.box_predictor.cls_score.",
    "roi_head.predictor.deltas.": "roi_heads.box_predictor.bbox_pred.",
}


def to_generalized_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Lite R-CNN's ``state_dict`` as that of a GeneralizedRCNN configured by `use_lite_rcnn`.

    Raises:
        ValueError: a name that a Lite R-CNN does not have.
    """
    return {_renamed(name, _NAMES): value for name, value in state.items()}


def from_generalized_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same the other way. Anchors, which Detectron2 keeps among the weights, are left out."""
    back = {theirs: ours for ours, theirs in _NAMES.items()}
    kept = {name: value for name, value in state.items() if ".anchor_generator." not in name}
    return {_renamed(name, back): value for name, value in kept.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    if name.startswith("backbone."):
        return name
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(
        f"a Lite R-CNN has no weight {name!r}; its names begin with backbone., {', '.join(names)}"
    )
