"""A trained model of ours on whole images: from a training's output folder, or from the zoo with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.data.ade20k import ADE20K_NAMES
from d2go_fbnetv5.engine.checkpoint import RunCheckpointer
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network, is_names
from d2go_fbnetv5.engine.recipes.models import model_recipe, searched_network
from d2go_fbnetv5.engine.train import CONFIG_FILE
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.text_files import read_json_object
from d2go_fbnetv5.zoo import create_model

MOST_PIXELS = 2**24  # of a resized image; a model needs some hundred bytes for each


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
    transform: EvalTransform
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
        """The model's outputs for images of any sizes, all boxes among them, in each image's own pixels.

        Raises:
            InputError: an image cannot be resized, or an output is not finite.
        """
        samples = [self.sample(image) for image in images]
        outputs = self.model(samples)
        for name, values in (item for output in outputs for item in output.items()):
            if values.is_floating_point() and not torch.isfinite(values).all():
                raise InputError(f"the model's {name} are not finite numbers; its weights may be damaged")
        for image, sample, output in zip(images, samples, outputs, strict=True):
            if "boxes" in output:
                (height, width), resized = image.shape[-2:], sample["image"].shape[-2:]
                scale = output["boxes"].new_tensor([width / resized[1], height / resized[0]] * 2)
                output["boxes"] = output["boxes"] * scale
        return outputs

    def sample(self, image: Tensor) -> dict[str, Any]:
        """What the model is given for an image.

        Raises:
            InputError: the image is so long and thin that it cannot be resized, or would become too large.
        """
        height, width = image.shape[-2:]
        self._check_shape(height, width)
        return self.transform({"image": image, "image_id": 0, "height": height, "width": width})

    def _check_shape(self, height: int, width: int) -> None:
        side, bound = self.transform.short_side, self.transform.max_size
        short, long = sorted((height, width))
        if side is not None:
            short, long = side, side * long // short
        if bound is not None and long > bound:
            short, long = bound * short // long, bound
        if short < 1 or short * long > MOST_PIXELS:
            raise InputError(
                f"an image of {height}x{width} pixels would be resized to {short} by {long}; allowed are 1 by 1 to "
                f"{MOST_PIXELS} pixels in all"
            )


def from_run(folder: str, weights: str | None = None) -> Predictor:
    """The model of a training, also of one that is still going on or was stopped.

    Args:
        folder: its OUTPUT_DIR, which may have been moved.
        weights: a checkpoint to use in place of the run's newest one.

    Raises:
        FileNotFoundError, InputError: names the file that is missing or wrong.
    """
    try:
        network = open_network(folder)
        recipe = model_recipe(network.model)
        model = network.build(recipe.kind)
        checkpoints = RunCheckpointer(model, folder).candidates()
        if not checkpoints and weights is None:
            raise FileNotFoundError("there is no checkpoint, such as model_final.pth")
        # The averaged ones, where the training has averaged weights.
        load_weights(model, weights or checkpoints[0], averaged=True)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"run {folder}: {error}") from error
    return Predictor(model.eval(), recipe.task, network.names, network.images)


def open_network(folder: str) -> Network:
    """The network that a run trains.

    Raises:
        FileNotFoundError, InputError: names the file that is missing or wrong.
    """
    if Path(folder, NETWORK_FILE).is_file():
        return Network.read(folder)
    # Runs of before there was this file have the names at their end, and the path of the topology.
    config, described = Path(folder, CONFIG_FILE), Path(folder, "model.json")
    if not (config.is_file() and described.is_file()):
        raise FileNotFoundError(f"no {NETWORK_FILE}, which a training of a model leaves")
    names = read_json_object(described).get("names")
    if not is_names(names):
        raise InputError(f"{described}: names is {names!r}, allowed is a list of one text or more")
    cfg = load_cfg(config)
    model_recipe(cfg.MODEL.META_ARCHITECTURE)
    return searched_network(cfg, names)


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
    if weights is not None:
        load_weights(model, weights)
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
