"""The model.json beside an exported file: all that an application needs to know of it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any, cast

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.models import ImageClassifier, LiteDepth, LiteMaskFormer, LiteRCNN, SearchedModel
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.version import __version__

_TASKS = {ImageClassifier: "cls", LiteMaskFormer: "seg", LiteRCNN: "det", LiteDepth: "depth"}


def task_of(model: SearchedModel) -> str:
    """ "cls", "seg", "det" or "depth"; another kind of model is a ValueError."""
    for kind, task in _TASKS.items():
        if isinstance(model, kind):
            return task
    raise InputError(
        f"cannot export a {type(model).__name__}; allowed are {', '.join(k.__name__ for k in _TASKS)}"
    )


def output_names(model: SearchedModel) -> tuple[str, ...]:
    """Return the names of what its file returns, in order."""
    return tuple(output["name"] for output in _outputs(model, task_of(model)))


def describe(
    model: SearchedModel,
    size: tuple[int, int],
    names: Sequence[str],
    transform: EvalTransform | None,
    packages: Sequence[str],
) -> dict[str, Any]:
    """Describe what does not depend on the format.

    Args:
        size: (height, width) of the images that the file is mainly for.
        names: of the classes; of depth its unit.
        transform: how evaluation prepares an image; None for not at all.
        packages: that the format was written with.
    """
    task = task_of(model)
    flops = model_flops(model, size)
    backbone = model.backbone
    return {
        "task": task,
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
        "outputs": _outputs(model, task),
        **({"unit": names[0]} if task == "depth" else {"classes": list(names)}),
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


def _outputs(model: SearchedModel, task: str) -> list[dict[str, Any]]:
    if task == "cls":
        return [{"name": "scores", "shape": [1, model.num_classes], "is": "the probability of each class"}]
    if task == "depth":
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
    count = cast(LiteRCNN, model).roi_head.max_detections
    return [
        {"name": "boxes", "shape": [count, 4], "is": "x0, y0, x1, y1 in pixels of the input"},
        {
            "name": "scores",
            "shape": [count],
            "is": "probabilities, best first; 0 where there is no detection",
        },
        {"name": "labels", "shape": [count], "is": "places in classes; -1 where there is no detection"},
    ]
