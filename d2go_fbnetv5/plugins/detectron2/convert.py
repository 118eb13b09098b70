"""Weights of other hosts and stages under the names that a model has here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from d2go_fbnetv5.utils.errors import InputError

_NAMES = {
    "rpn.head.": "proposal_generator.rpn_head.",
    "roi_head.box_head.": "roi_heads.box_head.",
    "roi_head.predictor.classes.": "roi_heads.box_predictor.cls_score.",
    "roi_head.predictor.deltas.": "roi_heads.box_predictor.bbox_pred.",
}
_SUPERNET = "supernet."


def to_generalized_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of a `d2go_fbnetv5.models.LiteRCNN` as that of Detectron2's GeneralizedRCNN configured by
    `use_lite_rcnn`; with it the two give equal outputs.

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


def adapt_weights(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights for a model to start from.

    Of a search, or of a supernet alone, the searched backbone takes its part; a Lite R-CNN of the embedded host gets
    Detectron2's names. Anything else stays as it is.

    Args:
        ours: the model's own ``state_dict``.
    """
    state = dict(state)
    ours_is_searched = any(name.startswith("backbone.") for name in ours)
    if ours_is_searched and any(name.startswith(_SUPERNET) for name in state):
        state = {name.removeprefix(_SUPERNET): v for name, v in state.items() if name.startswith(_SUPERNET)}
    if ours_is_searched and any(name.startswith("stage0.") for name in state):
        # Under an FPN the network is one level further down.
        inner = (
            "backbone.bottom_up." if any(n.startswith("backbone.bottom_up.") for n in ours) else "backbone."
        )
        return {name: v for key, v in state.items() if (name := inner + key) in ours}
    detectron2 = any(name.startswith("proposal_generator.") for name in ours)
    if detectron2 and any(name.startswith("roi_head.") for name in state):
        return to_generalized_rcnn(state)
    return state


def require_fit(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raises a ValueError if no weight is one of ``ours``, or one of a backbone or a supernet has another shape."""
    if not any(name in ours for name in state):
        raise InputError(
            f"MODEL.WEIGHTS: none of its weights ({', '.join(list(state)[:2])}, ...) fits this model"
        )
    for name, value in state.items():
        if name.startswith(("backbone.", _SUPERNET)) and name in ours and value.shape != ours[name].shape:
            raise InputError(
                f"MODEL.WEIGHTS: {name!r} is {tuple(value.shape)} in the file, {tuple(ours[name].shape)} in the model; "
                "is it of another family?"
            )
