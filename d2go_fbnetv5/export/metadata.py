"""The model.json beside an exported file: all that an application needs to know of it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.export.network.inference import in_file
from d2go_fbnetv5.models import (
    MODELS,
    ImageClassifier,
    LiteDepth,
    LiteMaskFormer,
    LiteRCNN,
    SearchedModel,
    SeveralHeads,
)
from d2go_fbnetv5.models.base import Names
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.version import __version__


def output_names(model: SearchedModel) -> tuple[str, ...]:
    """Return the names of what its file returns, in order."""
    return tuple(output["name"] for output in _outputs(model))


def outputs_by_task(model: SearchedModel, found: Sequence[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Return what a model's file returns as that of each model of one task, by the tasks' names."""
    parts, first = {}, 0
    for single in in_file(model):
        count = len(_outputs_of_one(single))
        parts[single.task] = tuple(found[first : first + count])
        first += count
    return parts


def describe(
    model: SearchedModel,
    size: tuple[int, int],
    names: Names,
    transform: EvalTransform | None,
    packages: Sequence[str],
) -> dict[str, Any]:
    """Describe what does not depend on the format.

    Args:
        size: (height, width) of the images that the file is mainly for.
        names: of the classes; of depth its unit; of several heads by their tasks' names.
        transform: how evaluation prepares an image; None for not at all.
        packages: that the format was written with.
    """
    labels = names if isinstance(names, dict) else {next(iter(model.singles())): names}
    classes = {task: list(each) for task, each in labels.items() if task != "depth"}
    flops = model_flops(model, size)
    backbone = model.backbone
    return {
        "task": "+".join(model.singles()),
        "input": {
            "name": "image",
            "shape": [1, 3, "height", "width"],
            "type": "float32",
            "channels": "RGB",
            "range": [0, 255],
            "normalisation": "done by the file itself",
            "size": list(size),
        },
        "preprocessing": _preprocessing(model, transform),
        "outputs": _outputs(model),
        **({"unit": labels["depth"][0]} if "depth" in labels else {}),
        **({"classes": classes if isinstance(names, dict) else list(names)} if classes else {}),
        "topology": {
            "family": backbone.family.name,
            **backbone.topology.to_dict(),
        },
        "flops": {
            "total": flops.total,
            "parts": flops.parts,
            "of": "multiply-adds of one image of the size above",
        },
        "parameters": flops.parameters,
        "versions": {
            "d2go_fbnetv5": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", *packages)},
        },
    }


def _preprocessing(model: SearchedModel, transform: EvalTransform | None) -> dict[str, Any]:
    steps: dict[str, Any] = {}
    if transform is not None and transform.short_side is not None:
        steps["resize"] = {
            "short_side": transform.short_side,
            "most_long_side": transform.max_size,
            "interpolation": "bilinear, antialiased",
        }
    if transform is not None and transform.crop is not None:
        steps["centre_crop"] = transform.crop
    if model.size_divisibility > 1:
        steps["pad"] = {
            "to_multiple_of": model.size_divisibility,
            "at_least": model.padded_size((1, 1))[0],
            "where": "right and bottom",
            "colour": [round(value, 3) for value in model.pixel_mean.tolist()],
        }
    return steps


def _outputs(model: SearchedModel) -> list[dict[str, Any]]:
    """Describe the outputs in order; those of several heads are named "det_boxes", and what is named as its task so."""
    if not isinstance(model, SeveralHeads):
        return _outputs_of_one(model)
    return [
        {
            **output,
            "name": single.task if output["name"] == single.task else f"{single.task}_{output['name']}",
        }
        for single in in_file(model)
        for output in _outputs_of_one(single)
    ]


def _outputs_of_one(model: SearchedModel) -> list[dict[str, Any]]:
    if isinstance(model, ImageClassifier):
        return [{"name": "scores", "shape": [1, model.num_classes], "is": "the probability of each class"}]
    if isinstance(model, LiteDepth):
        return [
            {"name": "depth", "shape": [1, 1, "height", "width"], "is": "each pixel's depth, in the unit"}
        ]
    if isinstance(model, LiteMaskFormer):
        queries = model.transformer_decoder.queries.num_embeddings
        return [
            {
                "name": "classes",
                "shape": [1, queries, model.num_classes],
                "is": "the probability of each class that a query's mask is of",
            },
            {
                "name": "masks",
                "shape": [1, queries, "height / 8", "width / 8"],
                "is": "the logit of each query's mask; enlarge it to height x width (bilinear, half-pixel centres) and "
                "take the sigmoid; a pixel's score of a class is the sum over queries of classes times masks, its "
                "class the greatest score",
            },
        ]
    if not isinstance(model, LiteRCNN):
        raise InputError(
            f"cannot export a {type(model).__name__}; allowed are "
            f"{', '.join(kind.__name__ for kind in (*MODELS.values(), SeveralHeads))}"
        )
    count = model.roi_head.max_detections
    return [
        {"name": "boxes", "shape": [count, 4], "is": "x0, y0, x1, y1 in pixels of the input"},
        {
            "name": "scores",
            "shape": [count],
            "is": "probabilities, best first; 0 where there is no detection",
        },
        {"name": "labels", "shape": [count], "is": "places in classes; -1 where there is no detection"},
    ]
