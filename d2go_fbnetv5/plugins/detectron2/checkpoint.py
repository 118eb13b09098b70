"""Detectron2's checkpointer, which also starts from a search and from what our own trainer has trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from d2go_fbnetv5.models.weights import SEARCH_WEIGHTS
from d2go_fbnetv5.plugins.detectron2.convert import (
    adapt_weights,
    has_observers,
    is_observer,
    leave_to_training,
    network_prefix,
    require_fit,
)
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.shipped import or_shipped


class StartsFromSearches:
    """Lets a `DetectionCheckpointer` start from more: MODEL.WEIGHTS may be a search, a supernet, or a model of the same
    network, of any trainer.

    Raises, on loading:
        ValueError: the file is damaged or holds more than tensors and plain values; a weight is not finite, or one of
            the backbone or the supernet is missing or has another shape. (Heads that the file lacks or has for another
            number of classes stay as they are, with Detectron2's warning.) Later, when a model with such a head is
            judged before it is trained.
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
        ours = self._names_to_load(checkpoint["model"])
        state = adapt_weights(checkpoint["model"], ours)
        if self._start and isinstance(self.model, MultitaskSearch):
            state = {name: value for name, value in state.items() if name.startswith(SEARCH_WEIGHTS)}
        require_fit(state, ours)
        checkpoint["model"] = state
        incompatible = super()._load_model(checkpoint)
        if network_prefix(ours) is not None:
            left = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
            leave_to_training(
                self.model,
                [name for name, _ in self.model.named_parameters() if name in left and not is_observer(name)],
            )
        return incompatible

    def _names_to_load(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's own ``state_dict``, under the names that it had before D2Go prepared it for int8 where the
        weights are those of a training in floats: D2Go gives them the others."""
        ours = self.model.state_dict()
        if has_observers(state):
            if not has_observers(ours):
                raise InputError(
                    "MODEL.WEIGHTS is of a training with QUANTIZATION.QAT.ENABLED True, allowed there: the same here"
                )
            return ours
        names = getattr(self.model, "_non_qat_to_qat_state_dict_map", {name: name for name in ours})
        return {name: ours[here] for name, here in names.items()}


class FBNetV5Checkpointer(StartsFromSearches, DetectionCheckpointer):
    """Detectron2's checkpointer for a model with our backbone or for a search; see `StartsFromSearches`."""
