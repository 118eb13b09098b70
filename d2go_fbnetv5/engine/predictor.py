"""A trained model of ours on whole images: from a training's output folder, or from the zoo with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.data.ade20k import ADE20K_NAMES
from d2go_fbnetv5.engine.build import build_transforms
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.model_recipes import MODEL_FILE, ModelRecipe, build_searched_model
from d2go_fbnetv5.engine.recipe import get_recipe
from d2go_fbnetv5.engine.train import CONFIG_FILE
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.zoo import create_model


@dataclass
class Predictor:
    """A trained model on whole images.

    Attributes:
        task: "cls", "det" or "seg".
        names: of its classes.
        transform: of a sample, before the model.
        threshold: `__call__` leaves out boxes that score less.
    """

    model: SearchedModel
    task: str
    names: tuple[str, ...]
    transform: Callable[[dict[str, Any]], dict[str, Any]]
    threshold: float = 0.5

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The model's output for an image, 3 x H x W uint8 RGB; boxes in that image's pixels."""
        output = self.predict([image])[0]
        if "boxes" in output:
            shown = output["scores"] >= self.threshold
            output = {name: values[shown] for name, values in output.items()}
        return output

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The model's outputs for images of any sizes, all boxes among them, in each image's own pixels."""
        samples = [self.sample(image) for image in images]
        outputs = self.model(samples)
        for image, sample, output in zip(images, samples, outputs, strict=True):
            if "boxes" in output:
                (height, width), resized = image.shape[-2:], sample["image"].shape[-2:]
                scale = output["boxes"].new_tensor([width / resized[1], height / resized[0]] * 2)
                output["boxes"] = output["boxes"] * scale
        return outputs

    def sample(self, image: Tensor) -> dict[str, Any]:
        """What the model is given for an image."""
        height, width = image.shape[-2:]
        return self.transform({"image": image, "image_id": 0, "height": height, "width": width})


def from_run(folder: str, weights: str | None = None) -> Predictor:
    """The model of a finished training.

    Args:
        folder: its OUTPUT_DIR.
        weights: a checkpoint to use in place of the run's last one.

    Raises:
        FileNotFoundError, ValueError: names the file that is missing or wrong.
    """
    config, described = Path(folder, CONFIG_FILE), Path(folder, MODEL_FILE)
    for path in (config, described):
        if not path.is_file():
            raise FileNotFoundError(
                f"run {folder}: no {path.name}, which a finished training of a model leaves"
            )
    cfg = load_cfg(config)
    recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
    if not issubclass(recipe, ModelRecipe):
        raise InputError(f"run {folder}: {cfg.MODEL.META_ARCHITECTURE} is no model that predicts")
    names = tuple(json.loads(described.read_text(encoding="utf-8"))["names"])
    cfg.MODEL.FBNETV5.DISTILLATION.TEACHER = ""  # it has taught
    if recipe.task != "cls":
        cfg.FBNETV5_DATA.CROP_SIZE_TEST = 0  # boxes and maps are those of the whole image
    model = build_searched_model(cfg, recipe.kind, DatasetInfo(), len(names))
    load_weights(model, weights or Path(folder, "model_final.pth"), averaged=cfg.MODEL_EMA.ENABLED)
    return Predictor(model.eval(), recipe.task, names, build_transforms(cfg)[1])


def from_zoo(
    name: str,
    weights: str | None,
    topology: str | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
) -> Predictor:
    """A model of the zoo by name.

    Args:
        name: such as "FBNetV5-A-DET".
        weights: its checkpoint; None for a model that is not trained.
        topology: the topologies.json that it was trained with; by default the zoo's reconstruction.
        num_classes: as many as there are names, or as in the paper, by default.
        names: of the classes; by default those of ADE20K for its 150, else the numbers.

    Raises:
        FileNotFoundError, ValueError: names what is missing or does not fit.
    """
    model = create_model(name, num_classes or (len(names) if names else None), topology)
    if weights is not None and load_weights(model, weights) == "supernet":
        raise InputError(f"weights {weights}: a supernet's, whose head is not this model's; train it first")
    count = model.num_classes
    if names is not None and len(names) != count:
        raise InputError(f"{len(names)} names of classes are given, the model has {count} classes")
    task = name.rsplit("-", 1)[1].lower()
    default = ADE20K_NAMES if task == "seg" and count == len(ADE20K_NAMES) else tuple(map(str, range(count)))
    family = model.backbone.family
    side = family.input_size
    transforms = {
        "cls": EvalTransform(round(side / 0.875), side),
        "det": EvalTransform(224, max_size=320),
        "seg": EvalTransform({"C": 448, "F": 512}.get(family.name, 384), max_size=2048),  # Table 3
    }
    return Predictor(model.eval(), task, tuple(names) if names else default, transforms[task])
