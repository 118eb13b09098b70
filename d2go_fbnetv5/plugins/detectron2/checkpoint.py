"""Detectron2's checkpointer, which also starts from a search and from what our own trainer has trained."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from d2go_fbnetv5.models.weights import SEARCH_WEIGHTS
from d2go_fbnetv5.plugins.detectron2.convert import adapt_weights, require_fit
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.shipped import or_shipped


class StartsFromSearches:
    """Lets a `DetectionCheckpointer` start from more: MODEL.WEIGHTS may be a search, a supernet, or a model of the same
    network, of any trainer.

    Raises, on loading:
        ValueError: the file is damaged or holds more than tensors and plain values; a weight is not finite, or one of
            the backbone or the supernet is missing or has another shape. (Heads of another number of classes stay as
            they are, with Detectron2's warning.)
    """

    _start = False  # whether the weights are those to begin with, rather than a run's own

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self._start = not (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(str(or_shipped(path)), resume=resume)
        finally:
            self._start = False

    def _torch_load(self, f: Any) -> Any:
        return read_tensors(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        ours = self.model.state_dict()
        state = adapt_weights(checkpoint["model"], ours)
        if self._start and isinstance(self.model, MultitaskSearch):
            state = {name: value for name, value in state.items() if name.startswith(SEARCH_WEIGHTS)}
        require_fit(state, ours)
        checkpoint["model"] = state
        return super()._load_model(checkpoint)


class FBNetV5Checkpointer(StartsFromSearches, DetectionCheckpointer):
    """Detectron2's checkpointer for a model with our backbone or for a search; see `StartsFromSearches`."""
