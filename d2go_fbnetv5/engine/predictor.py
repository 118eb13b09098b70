"""A trained model of ours on whole images, from its training's output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.card import SHARED_WEIGHTS, check_weights
from d2go_fbnetv5.engine.checkpoint import list_checkpoints
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.continuing import CONFIG_FILE
from d2go_fbnetv5.engine.network import NETWORK_FILE, Network, is_names, to_names
from d2go_fbnetv5.engine.recipes.models import model_recipe, searched_network
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.models.base import Names
from d2go_fbnetv5.models.weights import load_weights
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import MOST_AREA
from d2go_fbnetv5.utils.text_files import read_json_object


@dataclass
class Predictor:
    """A trained model on whole images.

    Attributes:
        task: "cls", "det", "seg" or "depth"; of several heads "cls+det", say.
        names: of its classes; of depth its unit; of several heads by their tasks' names.
        transform: of a sample, before the model.
        threshold: `__call__` leaves out boxes that score less.
    """

    model: SearchedModel
    task: str
    names: Names
    transform: EvalTransform
    threshold: float = 0.5

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each task's classes by the task's name."""
        return self.names if isinstance(self.names, dict) else {self.task: self.names}

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The model's output for an image, 3 x H x W uint8 RGB; boxes in that image's pixels."""
        output = self.predict([image])[0]
        if "boxes" in output:
            shown = output["scores"] >= self.threshold
            output |= {name: output[name][shown] for name in ("boxes", "scores", "labels")}
        return output

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the model's outputs for images of any sizes, all boxes among them, in each image's own pixels.

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
        """Return what the model is given for an image.

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
        if short < 1 or short * long > MOST_AREA:
            raise InputError(
                f"an image of {height}x{width} pixels would be resized to {short} by {long}; allowed are 1 by 1 to "
                f"{MOST_AREA} pixels in all"
            )


def from_run(folder: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> Predictor:
    """Open the model of a training, also of one that is still going on or was stopped.

    Args:
        folder: its OUTPUT_DIR, which may have been moved, or what `hub.save_pretrained` made of it.
        weights: a checkpoint to use in place of the run's newest one.

    Raises:
        FileNotFoundError, InputError: names the file that is missing or wrong.
    """
    try:
        network = open_network(folder)
        recipe = model_recipe(network.model)
        model = network.build(recipe.kind)
        shared = Path(folder, SHARED_WEIGHTS)
        checkpoints = list_checkpoints(folder) or ([shared] if shared.is_file() else [])
        if not checkpoints and weights is None:
            raise FileNotFoundError("there is no checkpoint, such as model_final.pth")
        path = Path(weights or checkpoints[0])
        if path == shared:
            check_weights(folder)
        load_weights(model, path, averaged=True)  # where the training has averaged weights
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"run {folder}: {error}") from error
    return Predictor(model.eval(), network.task(recipe.kind), network.names, network.images)


def open_network(folder: str | os.PathLike[str]) -> Network:
    """Read the network that a run trains.

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
    return searched_network(cfg, to_names(names))
