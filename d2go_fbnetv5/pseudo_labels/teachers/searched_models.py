"""Teachers "run" and "zoo": models of this project, from a training's output folder or from a checkpoint.

What a Lite MaskFormer believes of a pixel is MaskFormer's semantic inference, the sum over queries of class
probability times mask probability, as it is: not divided by its sum over classes. What is missing to one is the
probability that no query sees anything there, and "below 0.5 is don't care" is meant to leave out just that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from d2go_fbnetv5.engine.predictor import Predictor, from_run
from d2go_fbnetv5.models import LiteMaskFormer
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, register_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import bounded, class_names, require_finite
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.zoo import from_zoo


@register_teacher("run")
def run_teacher(
    device: torch.device, run: str, weights: str | None = None, names: Sequence[str] | None = None
) -> Teacher:
    """Label by the model that a training has left; several heads label for all of their tasks.

    Args:
        run: the training's OUTPUT_DIR.
        weights: a checkpoint to use in place of its last one.
        names: of the classes, in place of those of its data.

    Raises:
        FileNotFoundError, ValueError: names the file that is missing or wrong.
    """
    predictor, what = from_run(run, weights), f"run {run}"
    if names is not None:
        own = predictor.names
        if isinstance(own, dict):
            raise InputError(f"{what} is a model of {predictor.task}, allowed with names: one task's")
        predictor.names = class_names(names, own, what)
    return _SearchedModel(predictor, device, what)


@register_teacher("zoo")
def zoo_teacher(
    device: torch.device,
    model: str,
    weights: str | None = None,
    topology: str | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    budget: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> Teacher:
    """Label by a model of the zoo, such as "FBNetV5-A-DET", with a checkpoint or the package's own weights; options as
    those of `from_zoo`."""
    if weights is None and not pretrained:
        raise InputError(f"weights of {model} are missing, allowed without them: pretrained True")
    predictor = from_zoo(model, weights, topology, num_classes, names, budget, pretrained)
    return _SearchedModel(predictor, device, f"weights {weights or 'of ' + model}")


class _SearchedModel(Teacher):
    def __init__(self, predictor: Predictor, device: torch.device, what: str) -> None:
        require_finite(predictor.model, what)
        predictor.model.requires_grad_(False).to(device)
        self.predictor, self.singles = predictor, predictor.model.singles()
        for task, names in predictor.parts.items():
            setattr(self, self.singles[task].names_of, names)

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        outputs: list[dict[str, Tensor]] = [{} for _ in images]
        if set(self.singles) != {"seg"}:
            outputs = self.predictor.predict(images)
        if "seg" in self.singles:
            model = cast(LiteMaskFormer, self.singles["seg"])
            samples = [self.predictor.sample(image) for image in images]
            scores = model.by_padded_size(samples, lambda group: map(bounded, model.pixel_scores(group)))
            outputs = [output | {"probabilities": each} for output, each in zip(outputs, scores, strict=True)]
        return outputs
