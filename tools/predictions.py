"""What `predict` predicts with and how it shows it: a model with its names, pictures and JSON."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

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
from d2go_fbnetv5.zoo import create_model

SHOWN_CLASSES = 5
_FONT_SIZE = 16


@dataclass
class Predictor:
    """A trained model on whole images.

    Attributes:
        task: "cls", "det" or "seg".
        names: of its classes.
        transform: of a sample, before the model.
        threshold: boxes that score less are not shown.
    """

    model: SearchedModel
    task: str
    names: tuple[str, ...]
    transform: Callable[[dict[str, Any]], dict[str, Any]]
    threshold: float = 0.5

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The model's output for an image, 3 x H x W uint8 RGB; boxes in that image's pixels."""
        height, width = image.shape[-2:]
        sample = self.transform({"image": image, "image_id": 0, "height": height, "width": width})
        output = self.model([sample])[0]
        if "boxes" in output:
            resized = sample["image"].shape[-2:]
            scale = output["boxes"].new_tensor([width / resized[1], height / resized[0]] * 2)
            shown = output["scores"] >= self.threshold
            output = {name: values[shown] for name, values in output.items()}
            output["boxes"] = output["boxes"] * scale
        return output


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
                f"--run {folder}: no {path.name}, which a finished training of a model leaves"
            )
    cfg = load_cfg(config)
    recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
    if not issubclass(recipe, ModelRecipe):
        raise ValueError(f"--run {folder}: {cfg.MODEL.META_ARCHITECTURE} is no model that predicts")
    names = tuple(json.loads(described.read_text(encoding="utf-8"))["names"])
    cfg.MODEL.FBNETV5.DISTILLATION.TEACHER = ""  # it has taught
    model = build_searched_model(cfg, recipe.kind, DatasetInfo(), len(names))
    load_weights(model, weights or Path(folder, "model_final.pth"), averaged=cfg.MODEL_EMA.ENABLED)
    return Predictor(model.eval(), recipe.task, names, build_transforms(cfg)[1])


def from_zoo(
    name: str,
    weights: str,
    topology: str | None = None,
    num_classes: int | None = None,
    names_file: str | None = None,
) -> Predictor:
    """A model of the zoo by name, with a checkpoint.

    Raises:
        FileNotFoundError, ValueError: names what is missing or does not fit.
    """
    given = None
    if names_file is not None:
        given = tuple(Path(names_file).read_text(encoding="utf-8").split("\n"))
        given = tuple(line.strip() for line in given if line.strip())
    model = create_model(name, num_classes or (len(given) if given else None), topology)
    if load_weights(model, weights) == "supernet":
        raise ValueError(f"--weights {weights}: a supernet's, whose head is not this model's; train it first")
    count = model.num_classes
    if given is not None and len(given) != count:
        raise ValueError(f"--names {names_file}: {len(given)} names, the model has {count} classes")
    task = name.rsplit("-", 1)[1].lower()
    default = ADE20K_NAMES if task == "seg" and count == len(ADE20K_NAMES) else tuple(map(str, range(count)))
    family = model.backbone.family
    side = family.input_size
    transforms = {
        "cls": EvalTransform(round(side / 0.875), side),
        "det": EvalTransform(224, max_size=320),
        "seg": EvalTransform({"C": 448, "F": 512}.get(family.name, 384), max_size=2048),  # Table 3
    }
    return Predictor(model.eval(), task, given or default, transforms[task])


def label_map_at(output: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """H x W int64 labels at an image's own size."""
    labels = output["sem_seg"][None, None].float()
    return F.interpolate(labels, size, mode="nearest-exact")[0, 0].long()


def to_json(predictor: Predictor, output: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
    """An output as plain values: ``classes`` (best first), ``boxes``, or each class' share of the label map."""
    names = predictor.names
    if predictor.task == "cls":
        scores, labels = output["class_scores"].topk(min(SHOWN_CLASSES, len(names)))
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        return {"classes": [{"label": k, "name": names[k], "score": round(s, 6)} for k, s in pairs]}
    if predictor.task == "det":
        rows = zip(
            output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
        return {
            "boxes": [
                {"box": [round(v, 2) for v in box], "label": k, "name": names[k], "score": round(s, 6)}
                for box, k, s in rows
            ]
        }
    counts = label_map_at(output, size).unique(return_counts=True)
    total = size[0] * size[1]
    found = sorted(zip(*(values.tolist() for values in counts), strict=True), key=lambda pair: -pair[1])
    return {"sem_seg": [{"label": k, "name": names[k], "share": round(n / total, 6)} for k, n in found]}


def draw(predictor: Predictor, image: Tensor, output: dict[str, Tensor]) -> Tensor:
    """3 x H x W uint8: the image with the output drawn on it."""
    names, size = predictor.names, tuple(image.shape[-2:])
    if predictor.task == "cls":
        lines = [f"{c['name']} {c['score']:.2f}" for c in to_json(predictor, output, size)["classes"]]
        return _captioned(image, lines)
    if predictor.task == "det":
        if not len(output["boxes"]):
            return image
        labels = [
            f"{names[k]} {score:.2f}"
            for k, score in zip(output["labels"].tolist(), output["scores"].tolist(), strict=True)
        ]
        colors = [_color(k) for k in output["labels"].tolist()]
        return draw_bounding_boxes(image, output["boxes"], labels, colors=colors, width=2)
    labels = label_map_at(output, size)
    present = labels.unique().tolist()
    masks = torch.stack([labels == k for k in present])
    picture = draw_segmentation_masks(image, masks, alpha=0.6, colors=[_color(k) for k in present])
    return _captioned(picture, [names[k] for k in present], [_color(k) for k in present])


def _color(label: int) -> tuple[int, int, int]:
    """Of a class: hues by the golden angle, so that neighbours in the list differ."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 1.0)
    return tuple(int(255 * value) for value in rgb)


def _captioned(image: Tensor, lines: list[str], colors: list[tuple[int, int, int]] | None = None) -> Tensor:
    """The image with lines of text in its upper left corner, on a dark ground."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    canvas = ImageDraw.Draw(picture, "RGBA")
    font = ImageFont.load_default(size=max(9, min(_FONT_SIZE, image.shape[-2] // (len(lines) + 1))))
    top = 0
    for line, color in zip(lines, colors or [(255, 255, 255)] * len(lines), strict=True):
        left, upper, right, lower = canvas.textbbox((2, top), line, font=font)
        canvas.rectangle((left - 2, upper - 1, right + 2, lower + 1), fill=(0, 0, 0, 160))
        canvas.text((2, top), line, fill=color, font=font)
        top = lower + 2
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
