"""Teacher "torchvision": its detectors, semantic segmenters and classifiers, by their names."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from d2go_fbnetv5.models.weights import read_weights
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, register_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import ClassList, class_names, name_list, require_finite
from d2go_fbnetv5.tasks.images import run_in_groups
from d2go_fbnetv5.utils.errors import InputError

_KINDS = ("detection", "segmentation", "classification")


@register_teacher("torchvision")
def torchvision_teacher(
    device: torch.device,
    model: str,
    weights: str | None = "DEFAULT",
    names: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Teacher:
    """Label by a model of torchvision.

    Args:
        model: such as "fasterrcnn_resnet50_fpn_v2", "deeplabv3_resnet101" or "resnet50".
        weights: torchvision's own, such as "COCO_V1" or "DEFAULT", which it downloads; the path of a checkpoint, a
            ``state_dict`` or one under "model"; null for random ones.
        names: of the classes, a detector's without background; "N/A" leaves one out. Needed for weights of one's own,
            unless their classes are those of torchvision's.
        arguments: the model's own, such as ``{min_size: 640}``.

    Raises:
        ValueError: names the model, weights or argument that torchvision lacks, or the weights that do not fit.
        FileNotFoundError: no such checkpoint.
        OSError: the weights cannot be downloaded.
    """
    what = f"torchvision model {model!r}"
    kind, published = _find(model)
    chosen = _published(what, published, weights)
    default = chosen or published.DEFAULT
    entries = list(default.meta["categories"])
    if names is not None:
        background = entries[:1] if kind == "detection" else []
        if chosen is not None:
            names = class_names(names, entries[len(background) :], what)
        entries = [*background, *name_list("names", names)]
    options = {"num_classes": len(entries), **(arguments or {})}
    if kind != "classification":
        options["weights_backbone"] = None
    try:
        with _tensors_alone():
            network = torchvision.models.get_model(model, weights=chosen, **options)
    except OSError as error:
        raise OSError(f"{what}: weights {chosen} cannot be had: {error}") from error
    except pickle.UnpicklingError as error:  # its message advises to run what it holds
        raise InputError(f"{what}: the file of {chosen} in torch's cache holds more than tensors") from error
    except Exception as error:  # of torchvision, about the arguments
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
    if chosen is None and weights is not None:
        try:
            network.load_state_dict(read_weights(weights))
        except RuntimeError as error:
            raise InputError(
                f"{what}: {weights} does not fit, with {len(entries)} classes: {error}"
            ) from error
    require_finite(network, what)
    network = network.eval().requires_grad_(False).to(device)
    if kind == "detection":
        return _Detector(network, [None, *entries[1:]], device)
    return (_Segmenter if kind == "segmentation" else _Classifier)(
        network, entries, default.transforms(), device
    )


class _Detector(Teacher):
    """Labels are 1, 2, ...; 0 is the background, whatever its name."""

    def __init__(self, model: nn.Module, entries: Sequence[str | None], device: torch.device) -> None:
        self.model, self.device = model, device
        self.classes = ClassList(entries)
        self.box_names = self.classes.names

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        def run(indices: list[int]) -> list[dict[str, Tensor]]:
            found = self.model([images[i].to(self.device) / 255 for i in indices])
            return [self.classes.boxes(each["boxes"], each["scores"], each["labels"]) for each in found]

        return run_in_groups([image.shape for image in images], run)


class _Scorer(Teacher):
    """A model whose input the transform of its weights makes, and whose output is K x ... logits an image."""

    def __init__(
        self,
        model: nn.Module,
        entries: Sequence[str],
        transform: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.model, self.transform, self.device = model, transform, device
        self.classes = ClassList(entries)

    def probabilities(self, images: list[Tensor]) -> list[Tensor]:
        inputs = [self.transform(image) for image in images]

        def run(indices: list[int]) -> list[Tensor]:
            output = self.model(torch.stack([inputs[i] for i in indices]).to(self.device))
            logits = output["out"] if isinstance(output, Mapping) else output
            return [self.classes.scores(scores) for scores in logits.softmax(1)]

        return run_in_groups([image.shape for image in inputs], run)


class _Segmenter(_Scorer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sem_seg_names = self.classes.names

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"probabilities": scores} for scores in self.probabilities(images)]


class _Classifier(_Scorer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.class_names = self.classes.names

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"class_scores": scores} for scores in self.probabilities(images)]


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Inside, torch loads no pickle that runs code: torchvision's own weights are loaded from torch's cache without
    asking for that, and what lies there is compared with its checksum when it is downloaded alone."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


def _find(model: str) -> tuple[str, Any]:
    """Return which kind of model it is, and its published weights."""
    try:
        builder, weights = (
            torchvision.models.get_model_builder(model),
            torchvision.models.get_model_weights(model),
        )
    except ValueError:
        raise InputError(f"torchvision {torchvision.__version__} has no model {model!r}") from None
    part = builder.__module__.removeprefix("torchvision.models.").split(".")
    kind = part[0] if len(part) > 1 else "classification"
    if kind not in _KINDS:
        raise InputError(
            f"torchvision model {model!r} is for {kind}, allowed are those for {', '.join(_KINDS)}"
        )
    return kind, weights


def _published(what: str, weights: type[Enum], name: str | None) -> Any:
    """The member of torchvision's weights, None if the name is of none."""
    if name is None:
        return None
    name = str(name).removeprefix(f"{weights.__name__}.")
    if name in weights.__members__:
        return weights[name]
    if not os.path.isfile(name):
        allowed = ", ".join(weights.__members__)
        raise FileNotFoundError(f"{what}: weights {name!r} are neither a file nor torchvision's ({allowed})")
    return None
