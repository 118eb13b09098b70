"""From what a teacher gives for an image to labels: checks, class lists, thresholds (section 3.2).

"We filter out object detection results with a confidence lower than 0.5, and set segmentation predictions whose
maximum probability [is] lower than 0.5 to be the don't-care category." So what equals the threshold is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d2go_fbnetv5.data.names import checked_names
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

IGNORE = DatasetInfo.sem_seg_ignore
# Scores are counted in this many equal parts of 0 to 1, the last one with 1 itself.
SCORE_BINS = 20
# What becomes of a teacher's boxes.
BOX_COUNTS = ("given", "dropped_class", "below_threshold", "without_area", "kept")

# Rounding errors of a model's softmax.
_TOLERANCE = 1e-3
# Probabilities that are resized at a time, so that 171 classes of a large photograph fit into memory.
_MAX_RESIZED = 2**25
# Beyond these an output is a mistake, and its image is not worth the memory.
_MAX_BOXES = 2**20
_MAX_MAP = 2**27  # pixels
# Quantized, packed and complex numbers are none of these.
_TYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


class OutputError(ValueError):
    """A teacher's output for an image breaks the teacher's contract."""


class ClassMap:
    """The class of the set that each class of a source becomes.

    Args:
        where: for messages, such as "DET".
        found: the source's classes. Equal names are one class.
        remap: {name in ``found``: another name, or "" to drop the class}. Several may become the same.
        names: the set's classes; the source's others are dropped. Empty for all, in the source's order.
        complete: whether each of ``names`` must come of a class of the source.

    Attributes:
        names: the set's classes.
        labels: for each class of the source the set's, or -1 for a dropped one.

    Raises:
        ValueError: a name that is not there, or no class is left.
    """

    def __init__(
        self,
        where: str,
        found: Sequence[str],
        remap: Mapping[str, str] | None = None,
        names: Sequence[str] = (),
        complete: bool = True,
    ) -> None:
        remap = remap or {}
        for name in remap:
            if name not in found:
                raise InputError(
                    f"{where}.REMAP has {name!r}, allowed are the source's classes: {_list(found)}"
                )
        renamed = [remap.get(name, name) for name in found]
        if len(set(names)) < len(names) or "" in names:
            raise InputError(f"{where}.NAMES has a name twice, or an empty one: {list(names)}")
        absent = [name for name in names if name not in renamed]
        if absent and complete:
            raise InputError(
                f"{where}.NAMES has {absent[0]!r}, which no class of the teacher becomes: {_list(found)}"
            )
        found_names = tuple(names) or tuple(name for name in dict.fromkeys(renamed) if name)
        self.names = checked_names(f"{where}: the set's classes", found_names)
        if not self.names:
            raise InputError(f"{where}: no class is left of the source's: {_list(found)}")
        places = {name: label for label, name in enumerate(self.names)}
        self.labels = torch.tensor([places.get(name, -1) for name in renamed])

    def __len__(self) -> int:
        """Return how many classes the source has."""
        return len(self.labels)

    def add_merged(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """K x ... scores of the source's classes -> those of the set's and of dropped ones, with each one's label.

        Scores of classes that become one are added; dropped ones keep theirs and the label -1.
        """
        kept = self.labels[self.labels >= 0]
        if len(kept.unique()) == len(kept):
            return scores, self.labels.to(scores.device)
        target = self.labels.clone()
        dropped = target < 0
        target[dropped] = len(self.names) + torch.arange(int(dropped.sum()))
        total = len(self.names) + int(dropped.sum())
        labels = torch.arange(total, device=scores.device)
        labels[len(self.names) :] = -1
        added = scores.new_zeros((total, *scores.shape[1:]))
        return added.index_add_(0, target.to(scores.device), scores), labels


@dataclass
class Boxes:
    """The boxes of an image that are kept, and what became of the others.

    Attributes:
        boxes, labels, scores: M x 4 float32, M int32, M float32 (None where no teacher gave them).
        crowd: M bool, or None.
        areas: M float64, of the objects themselves, or None.
        counts: of boxes, by BOX_COUNTS.
        histogram: K x SCORE_BINS, the scores of all boxes of each class, those below the threshold too.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    crowd: np.ndarray | None
    areas: np.ndarray | None
    counts: dict[str, int]
    histogram: np.ndarray | None


def filter_boxes(
    output: Mapping[str, Any], size: tuple[int, int], classes: ClassMap, threshold: float
) -> Boxes:
    """Return a teacher's boxes that score at least ``threshold``, cut off at the image's border.

    Args:
        output: ``boxes``, ``scores``, ``labels``; see ``teacher``.
        size: height and width of the image.

    Raises:
        OutputError: missing, of wrong shapes, not finite, or out of range.
    """
    boxes, scores = _floats(output, "boxes", (None, 4))[0], _unit(output, "scores", (None,))
    labels = _labels(output, "labels", (None,), len(classes))
    if not len(boxes) == len(scores) == len(labels):
        raise OutputError(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if not len(boxes):
        return _no_boxes(len(classes.names))
    labels = classes.labels[labels]
    known = labels >= 0
    bins = _bins(scores[known])
    histogram = torch.bincount(labels[known] * SCORE_BINS + bins, minlength=len(classes.names) * SCORE_BINS)
    kept = known & (scores >= threshold)
    found = _inside(boxes[kept], labels[kept], size, scores=scores[kept])
    found.counts = {
        "given": len(boxes),
        "dropped_class": int((~known).sum()),
        "below_threshold": int((known & (scores < threshold)).sum()),
        **found.counts,
    }
    found.histogram = histogram.reshape(-1, SCORE_BINS).numpy()
    return found


def _no_boxes(num_classes: int) -> Boxes:
    return Boxes(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        None,
        None,
        dict.fromkeys(BOX_COUNTS, 0),
        np.zeros((num_classes, SCORE_BINS), np.int64),
    )


def map_boxes(sample: Mapping[str, Any], size: tuple[int, int], classes: ClassMap) -> Boxes:
    """Return a sample's own boxes with the set's classes."""
    labels = classes.labels[sample["box_labels"]]
    kept = labels >= 0
    more = {
        name: sample[key][kept]
        for name, key in (("crowd", "box_is_crowd"), ("areas", "box_areas"))
        if key in sample
    }
    found = _inside(sample["boxes"][kept], labels[kept], size, **more)
    found.counts = {
        "given": len(labels),
        "dropped_class": int((~kept).sum()),
        "below_threshold": 0,
    } | found.counts
    return found


def _inside(
    boxes: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    scores: Tensor | None = None,
    crowd: Tensor | None = None,
    areas: Tensor | None = None,
) -> Boxes:
    height, width = size
    boxes = boxes.float()
    limits = boxes.new_tensor([width, height, width, height])
    boxes = boxes.clamp(min=boxes.new_zeros(4), max=limits)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Boxes(
        boxes[kept].numpy(),
        labels[kept].numpy().astype(np.int32),
        scores=None if scores is None else scores[kept].float().numpy(),
        crowd=None if crowd is None else crowd[kept].numpy(),
        areas=None if areas is None else areas[kept].numpy(),
        counts={"without_area": int((~kept).sum()), "kept": int(kept.sum())},
        histogram=None,
    )


def filter_map(
    output: Mapping[str, Any], size: tuple[int, int], classes: ClassMap, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a teacher's label map: H x W uint8, 255 where the confidence is below ``threshold`` or the class dropped.

    Args:
        output: ``probabilities``, or ``sem_seg`` and ``sem_seg_scores``; see ``teacher``. Probabilities of classes
            that become one are added.
        size: height and width of the image.

    Returns:
        The map, and the confidences of its pixels in SCORE_BINS bins.

    Raises:
        OutputError: missing, of wrong shapes, not finite, or out of range.
    """
    if "probabilities" in output:
        given = _unit(output, "probabilities", (len(classes), None, None), cpu=False)
        confidence, labels = _best(*classes.add_merged(given), size)
    else:
        found = _labels(output, "sem_seg", size, len(classes))
        confidence, labels = _unit(output, "sem_seg_scores", size), classes.labels[found]
    labels = torch.where((confidence >= threshold) & (labels >= 0), labels, IGNORE).to(torch.uint8)
    histogram = torch.bincount(_bins(confidence).flatten(), minlength=SCORE_BINS)
    return labels.cpu().numpy(), histogram.cpu().numpy()


def filter_depth(output: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return a teacher's depth, H x W float32, resized to the image.

    Args:
        output: ``depth``, see ``teacher``.
        size: height and width of the image.

    Raises:
        OutputError: missing, of a wrong shape, not finite, or not over 0.
    """
    depth, low, _ = _floats(output, "depth", (None, None))
    if low <= 0:
        raise OutputError(f"depth has values from {low:.4g}, allowed are those over 0")
    depth = depth.float()
    if depth.shape != size:
        depth = F.interpolate(depth[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return depth.numpy()


def map_label_map(sem_seg: Tensor, classes: ClassMap) -> np.ndarray:
    """Map a sample's own map, H x W int64 with 255, to the set's classes, as uint8."""
    table = torch.full((IGNORE + 1,), IGNORE, dtype=torch.uint8)
    table[: len(classes)] = torch.where(classes.labels >= 0, classes.labels, IGNORE).to(torch.uint8)
    return table[sem_seg].numpy()


def _best(scores: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """H x W greatest scores and their labels; the first of equal ones."""
    step = max(1, _MAX_RESIZED // (size[0] * size[1]))
    for first in range(0, len(scores), step):
        part = scores[first : first + step]
        if part.shape[1:] != size:
            part = F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0]
        best, place = part.max(0)
        found = labels[first : first + step][place]
        if first == 0:
            confidence, chosen = best, found
        else:
            better = best > confidence
            confidence, chosen = torch.where(better, best, confidence), torch.where(better, found, chosen)
    return confidence, chosen


def filter_class(
    output: Mapping[str, Any], classes: ClassMap, threshold: float
) -> tuple[int | None, np.ndarray]:
    """Return a teacher's best class if it scores at least ``threshold`` and is not dropped, else None.

    Returns:
        The class, and a 1 in the bin of its score, of SCORE_BINS.

    Raises:
        OutputError: missing, of another length, not finite, or out of range.
    """
    scores, labels = classes.add_merged(_unit(output, "class_scores", (len(classes),)))
    best = int(scores.argmax())
    label = int(labels[best]) if labels[best] >= 0 and scores[best] >= threshold else None
    return label, torch.bincount(_bins(scores[best : best + 1]), minlength=SCORE_BINS).numpy()


def _bins(scores: Tensor) -> Tensor:
    return (scores * SCORE_BINS).long().clamp(0, SCORE_BINS - 1)


def _tensor(output: Mapping[str, Any], key: str, shape: Sequence[int | None]) -> Tensor:
    if key not in output:
        raise OutputError(f"the teacher gives no {key}")
    value = output[key]
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except Exception as error:  # it is for the object to say that it is no array, in any way it likes
            kind = type(value).__name__
            raise OutputError(f"{key} is a {kind}, which torch makes no tensor of ({error})") from error
    if value.is_nested or value.layout != torch.strided or value.device.type == "meta":
        raise OutputError(f"{key} is sparse, nested or without values, expected a dense tensor")
    if value.dtype not in _TYPES:
        raise OutputError(f"{key} has the type {value.dtype}, expected floats or integers")
    if value.ndim != len(shape) or any(
        size not in (None, found) for size, found in zip(shape, value.shape, strict=True)
    ):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise OutputError(f"{key} has the shape {tuple(value.shape)}, expected {wanted}")
    least, most = (0, _MAX_BOXES) if shape[0] is None else (1, _MAX_MAP)
    places = math.prod(found for size, found in zip(shape, value.shape, strict=True) if size is None)
    if not least <= places <= most:
        raise OutputError(
            f"{key} has the shape {tuple(value.shape)}, allowed are {least} to {most} boxes or pixels"
        )
    return value.detach()


def _floats(
    output: Mapping[str, Any], key: str, shape: Sequence[int | None], cpu: bool = True
) -> tuple[Tensor, float, float]:
    """The values, the smallest and the greatest of them."""
    value = _tensor(output, key, shape)
    value = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)
    low, high = (float(bound) for bound in value.aminmax()) if value.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN is the bound of whatever it is among
        raise OutputError(f"{key} has values that are not finite")
    return value.cpu() if cpu else value, low, high


def _unit(output: Mapping[str, Any], key: str, shape: Sequence[int | None], cpu: bool = True) -> Tensor:
    value, low, high = _floats(output, key, shape, cpu)
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise OutputError(f"{key} has values from {low:.4g} to {high:.4g}, allowed are 0 to 1")
    return value if low >= 0 and high <= 1 else value.clamp(0, 1)


def _labels(output: Mapping[str, Any], key: str, shape: Sequence[int | None], count: int) -> Tensor:
    value = _tensor(output, key, shape)
    # A list of no labels has torch's default type.
    if value.numel() and (value.is_floating_point() or value.dtype == torch.bool):
        raise OutputError(f"{key} has the type {value.dtype}, expected integers")
    value = value.long().cpu()
    if value.numel() and (value.min() < 0 or value.max() >= count):
        raise OutputError(
            f"{key} has values from {value.min()} to {value.max()}, allowed are 0 to {count - 1}"
        )
    return value


def _list(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names if len(names) <= 20 else [*names[:19], "...", names[-1]])
