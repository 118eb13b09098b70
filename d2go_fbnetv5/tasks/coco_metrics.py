"""COCO's average precision of boxes, by pycocotools."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.tasks.gather import gather_records, warn_unlabelled
from d2go_fbnetv5.tasks.images import label_size

_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the order of COCOeval.stats


@dataclass(frozen=True)
class _Record:
    """One image's truth and detections; boxes are M x 4 XYXY pixels of the original image."""

    size: tuple[int, int]
    boxes: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    detected_boxes: np.ndarray
    detected_labels: np.ndarray
    scores: np.ndarray


class AveragePrecision:
    """``AP`` (mean over IoU 0.5:0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and ``AP-<name>``, in 0..1.

    Means are over the classes that occur in the truth; a class that does not has no ``AP-<name>``. A mean over nothing
    (no large object at all, say) is NaN. All is counted in pixels of the original image. Small, medium and large are
    told apart by the objects' areas, those of their masks where the data set has them. At most 100 detections of an
    image count.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.reset()

    def reset(self) -> None:
        self._records: dict[int, _Record] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Reads ``boxes``, ``box_labels``, ``box_is_crowd`` and ``box_areas`` (if any) of the inputs, and ``boxes``,
        ``scores`` and ``labels`` of the outputs. Boxes are XYXY pixels: those of the inputs in a frame of ``height`` x
        ``width`` (the image's size where they are missing), those of the outputs in the input's ``image``.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if "boxes" not in sample or sample["image_id"] in self._records:
                continue
            height, width = sample["image"].shape[-2:]
            size = label_size(sample)
            scale = np.array([size[1] / width, size[0] / height] * 2)
            labels = _numpy(sample["box_labels"])
            boxes = _numpy(sample["boxes"]).reshape(-1, 4).astype(np.float64)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            self._records[int(sample["image_id"])] = _Record(
                size=size,
                boxes=boxes,
                areas=_numpy(sample.get("box_areas", areas)),
                labels=labels,
                is_crowd=_numpy(sample.get("box_is_crowd", np.zeros(len(labels), bool))),
                detected_boxes=_numpy(output["boxes"]).reshape(-1, 4) * scale,
                detected_labels=_numpy(output["labels"]),
                scores=_numpy(output["scores"]),
            )

    def evaluate(self) -> dict[str, float]:
        records = gather_records(self._records)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
            truth, detections = self._coco(records)
            evaluation = COCOeval(truth, detections, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # -1 where there is no truth to find.
        metrics = {
            key: float(value) if value > -1 else math.nan
            for key, value in zip(_SUMMARY, evaluation.stats, strict=False)
        }
        if math.isnan(metrics["AP"]):
            warn_unlabelled("detection", "boxes")
        # Thresholds x recalls x classes x areas x limits; -1 where the class has no truth.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for index, name in enumerate(self.names):
            if precision.size and (precision[:, :, index] > -1).any():
                metrics[f"AP-{name}"] = float(precision[:, :, index].mean())
        return metrics

    def _coco(self, records: dict[int, _Record]) -> tuple[COCO, COCO]:
        truth, detections = [], []
        for image_id, record in records.items():
            truth += _annotations(image_id, record.boxes, record.labels, record.areas, record.is_crowd)
            found = record.detected_boxes
            areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
            zeros = np.zeros(len(found), bool)
            detected = _annotations(image_id, found, record.detected_labels, areas, zeros)
            detections += [
                {**box, "score": score} for box, score in zip(detected, record.scores.tolist(), strict=True)
            ]
        images = [
            {"id": i, "height": record.size[0], "width": record.size[1]} for i, record in records.items()
        ]
        categories = [{"id": index, "name": name} for index, name in enumerate(self.names)]
        return _indexed(images, categories, truth), _indexed(images, categories, detections)


def _annotations(
    image_id: int, boxes: np.ndarray, labels: np.ndarray, areas: np.ndarray, is_crowd: np.ndarray
) -> list[dict[str, Any]]:
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    columns = (xywh.tolist(), areas.tolist(), labels.tolist(), is_crowd.tolist())
    return [
        {"image_id": image_id, "bbox": box, "area": area, "category_id": label, "iscrowd": int(crowd)}
        for box, area, label, crowd in zip(*columns, strict=True)
    ]


def _indexed(
    images: list[dict[str, Any]], categories: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> COCO:
    coco = COCO()
    # COCOeval takes the id 0 for "not matched", so ids count from 1.
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": numbered}
    coco.createIndex()
    return coco


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy()
