"""The subjects of a benchmark: models of ours, and others as its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch.cost import count_flops
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.export.image_sizes import STEP, fitting_size, is_whole, smallest_side, usual_size
from d2go_fbnetv5.export.images import CALIBRATION_IMAGES, run_images
from d2go_fbnetv5.export.metadata import output_names
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, SearchedModel
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.zoo import create_model, from_zoo

BASELINES = (
    "timm/mobilenetv3_large_100",
    "timm/fbnetv3_b",
    "timm/efficientnet_b0",
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
)
Size = tuple[int, int]
_NOISE_IMAGES = 4


def _noise(size: Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [255 * torch.rand(1, 3, *size, generator=generator) for _ in range(_NOISE_IMAGES)]


@dataclass(frozen=True)
class Subject:
    """A model with random or trained weights, ready for any format.

    Attributes:
        size: (height, width) of the image that it is usually given.
        least: pixels of the smallest side that it takes.
        outputs: their names.
        module: a size -> what maps 1 x 3 x H x W in 0..255 to the outputs, in evaluation mode.
        flops: a size -> multiply-adds; None where they cannot be counted.
        calibration: a size -> images that int8 is calibrated with. Noise where a model is not trained: how fast int8 is
            does not depend on them.
    """

    name: str
    size: Size
    least: int
    outputs: tuple[str, ...]
    module: Callable[[Size], nn.Module]
    flops: Callable[[Size], int | None]
    calibration: Callable[[Size], Iterable[Tensor]] = _noise


def open_subject(name: str) -> Subject:
    """A model of the zoo, the OUTPUT_DIR of a finished training, pretrained/NAME (of the zoo, with the package's
    weights), timm/NAME, or torchvision/NAME (a detector).

    Raises:
        ValueError, FileNotFoundError: there is no such model, or the package is not installed.
    """
    library, slash, rest = name.partition("/")
    if slash and library == "timm":
        return _timm(name, rest)
    if slash and library == "torchvision":
        return _torchvision(name, rest)
    if Path(name).is_dir():
        predictor = from_run(name)
        subject = _searched(name, predictor.model, usual_size(predictor.model, predictor.transform))
        return replace(
            subject, calibration=lambda size: run_images(name, predictor, "TRAIN", CALIBRATION_IMAGES)[0]
        )
    if slash and library == "pretrained":
        predictor = from_zoo(rest, None, pretrained=True)
        return _searched(name, predictor.model, usual_size(predictor.model, predictor.transform))
    if slash:
        raise FileNotFoundError(
            f"{name} does not exist; a finished training, pretrained/NAME, timm/NAME or torchvision/NAME is"
        )
    model = create_model(name).eval()
    return _searched(name, model, usual_size(model, None))


def _searched(name: str, model: SearchedModel, size: Size) -> Subject:
    def module(size: Size) -> nn.Module:
        fitting_size(model, size)
        return inference_module(model, isinstance(model, ImageClassifier) and not is_whole(size))

    least, outputs = smallest_side(model), output_names(model)
    return Subject(name, size, least, outputs, module, lambda size: model_flops(model, size).total)


def _timm(name: str, model_name: str) -> Subject:
    timm = require_extra(name, "timm", "distillation")
    if not timm.is_model(model_name):
        raise InputError(f"{name}: timm {timm.__version__} has no model {model_name!r}")
    model = timm.create_model(model_name).eval().requires_grad_(False)
    size = tuple(model.default_cfg["input_size"][1:])

    def flops(size: Size) -> int:
        with torch.device("meta"):
            return count_flops(timm.create_model(model_name), torch.empty(1, 3, *size))

    mean, std = model.default_cfg["mean"], model.default_cfg["std"]
    return Subject(name, size, STEP, ("scores",), lambda size: _Classifier(model, mean, std).eval(), flops)


def _torchvision(name: str, model_name: str) -> Subject:
    from torchvision.models import detection, get_model, list_models

    if model_name not in list_models(detection):
        raise InputError(
            f"{name}: torchvision has no detector {model_name!r}, as {', '.join(list_models(detection))}"
        )
    model = get_model(model_name, weights=None, weights_backbone=None).eval().requires_grad_(False)
    outputs = ("boxes", "scores", "labels")
    return Subject(name, (320, 320), STEP, outputs, lambda size: _Detector(model).eval(), lambda size: None)


class _Classifier(nn.Module):
    """A classifier of timm's with what ours do in their files: normalising, and probabilities."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)))

    def forward(self, image: Tensor) -> Tensor:
        return self.model((image - self.mean) * self.scale).softmax(1)


class _Detector(nn.Module):
    """A detector of torchvision's as a function of tensors. It resizes the image as it was made to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = [image[0] / 255]
        # Scripted, the model returns its losses, too.
        found = self.model(images)[1][0] if torch.jit.is_scripting() else self.model(images)[0]
        return found["boxes"], found["scores"], found["labels"]
