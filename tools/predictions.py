"""A prediction as a picture and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.reports.overlays import draw_boxes, draw_depth, draw_label_map, draw_lines
from d2go_fbnetv5.tasks.images import image_size

SHOWN_CLASSES = 5


def to_json(predictor: Predictor, output: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
    """Return an output as plain values: ``classes`` (best first), ``boxes``, ``depth``, the label map's shares
    (``sem_seg``), or all of those that the model predicts."""
    values: dict[str, Any] = {}
    for task, names in predictor.parts.items():
        values |= _values(task, names, output, size)
    return values


def _values(
    task: str, names: Sequence[str], output: dict[str, Tensor], size: tuple[int, int]
) -> dict[str, Any]:
    if task == "cls":
        scores, labels = output["class_scores"].topk(min(SHOWN_CLASSES, len(names)))
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        return {"classes": [{"label": k, "name": names[k], "score": round(s, 6)} for k, s in pairs]}
    if task == "det":
        rows = zip(
            output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
        return {
            "boxes": [
                {"box": [round(v, 2) for v in box], "label": k, "name": names[k], "score": round(s, 6)}
                for box, k, s in rows
            ]
        }
    if task == "depth":
        depth = output["depth"]
        least, middle, most = (round(float(value), 4) for value in (depth.min(), depth.median(), depth.max()))
        return {"depth": {"unit": names[0], "least": least, "median": middle, "most": most}}
    counts = output["sem_seg"].unique(return_counts=True)
    total = size[0] * size[1]
    found = sorted(zip(*(values.tolist() for values in counts), strict=True), key=lambda pair: -pair[1])
    return {"sem_seg": [{"label": k, "name": names[k], "share": round(n / total, 6)} for k, n in found]}


def draw(predictor: Predictor, image: Tensor, output: dict[str, Tensor]) -> Tensor:
    """3 x H x W uint8: the image with the output drawn on it; for several tasks one such picture beside the other."""
    return torch.cat([_drawn(task, names, image, output) for task, names in predictor.parts.items()], dim=2)


def _drawn(task: str, names: Sequence[str], image: Tensor, output: dict[str, Tensor]) -> Tensor:
    if task == "cls":
        found = _values(task, names, output, image_size(image))["classes"]
        return draw_lines(image, [f"{c['name']} {c['score']:.2f}" for c in found])
    if task == "det":
        labels, scores = output["labels"].tolist(), output["scores"].tolist()
        captions = [f"{names[k]} {score:.2f}" for k, score in zip(labels, scores, strict=True)]
        return draw_boxes(image, output["boxes"], labels, captions)
    if task == "depth":
        return draw_depth(output["depth"])
    return draw_label_map(image, output["sem_seg"], names)
