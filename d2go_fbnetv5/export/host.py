"""An application's part around the two methods of an exported Lite R-CNN, in Python.

`cpp/lite_rcnn_host.hpp` is the same in C++17, without dependencies; `host_header` says where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from d2go_fbnetv5.export.network.boxes import detect, propose
from d2go_fbnetv5.models.base import MOST
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import is_number

Method = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class HostSettings:
    """The member ``detector`` of a detector's model.json.

    Attributes:
        cell_anchors: A boxes (XYXY pixels), the anchors of the feature in the upper left corner.
        stride: pixels between features.
        resolution: features along a side of a region.
        num_classes: K.
        proposals_before_nms: of the best anchors pass into NMS, proposals_after_nms at most pass on.
        proposals_iou: of two proposals that overlap by more, the one with the lower score is dropped.
        score_threshold: a detection scores more than this.
        iou: as ``proposals_iou``, of two detections of one class.
        max_detections: in an image.
    """

    cell_anchors: tuple[tuple[float, float, float, float], ...]
    stride: int
    resolution: int
    num_classes: int
    proposals_before_nms: int
    proposals_after_nms: int
    proposals_iou: float
    score_threshold: float
    iou: float
    max_detections: int

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
                raise InputError(f"{name} is {value!r}, allowed is a whole number from 1 to {MOST}")
        for name in ("proposals_iou", "score_threshold", "iou"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise InputError(f"{name} is {value!r}, allowed is a number from 0 to 1")
        anchors = self.cell_anchors
        if not (anchors and all(len(box) == 4 and all(map(is_number, box)) for box in anchors)):
            raise InputError("cell_anchors has a box that is not four finite numbers, or no box")
        if not all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in anchors):
            raise InputError("cell_anchors has a box without area; allowed is x0 < x1 and y0 < y1")

    @classmethod
    def of(cls, inference: Any) -> HostSettings:
        """Take the settings of an `AnyDetector`."""
        rest = {
            field.name: getattr(inference, field.name)
            for field in fields(cls)
            if field.name not in ("cell_anchors", "num_classes")
        }
        anchors = tuple(tuple(box) for box in inference.cell_anchors.tolist())
        return cls(cell_anchors=anchors, num_classes=inference.boxes.num_classes, **rest)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cell_anchors": [list(box) for box in self.cell_anchors]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HostSettings:
        """Read what `to_json` wrote, perhaps edited since. Raises an InputError that names the member that is wrong."""
        if not isinstance(content, Mapping):
            raise InputError(f"the detector's settings are {content!r}, allowed is an object")
        names = {field.name for field in fields(cls)}
        wrong = names.symmetric_difference(content)
        if wrong:
            raise InputError(f"the detector's settings lack or do not know {', '.join(sorted(wrong))}")
        anchors = content["cell_anchors"]
        if not (isinstance(anchors, list | tuple) and all(isinstance(box, list | tuple) for box in anchors)):
            raise InputError(f"cell_anchors is {anchors!r}, allowed is a list of boxes of four numbers")
        return cls(**{**content, "cell_anchors": tuple(map(tuple, anchors))})


_COUNTS = (
    "stride",
    "resolution",
    "num_classes",
    "proposals_before_nms",
    "proposals_after_nms",
    "max_detections",
)


class HostedDetector:
    """An exported detector: the two methods and what is computed between and after them.

    Args:
        proposals: 1 x 3 x H x W image -> feature, objectness and deltas, as `DetectorProposals`, and what other heads
            give.
        boxes: R x C x n x n regions -> probabilities and deltas, as `DetectorBoxes`; R is at least 1.
    """

    def __init__(self, settings: HostSettings, proposals: Method, boxes: Method) -> None:
        self.settings = settings
        self._proposals = proposals
        self._boxes = boxes

    def __call__(self, image: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
        """Detections in an image, best first: M x 4 boxes (XYXY pixels), M scores and M int64 labels; and then what
        other heads give.

        Args:
            image: 1 x 3 x H x W, RGB in 0..255; H and W are as model.json's ``image_sizes`` says.
            size: (height, width) of the image in the upper left corner of a padded one, to which boxes are cut.
        """
        size = size or (image.shape[2], image.shape[3])
        feature, objectness, deltas, *others = self._proposals(image)
        proposals = self.propose(objectness, deltas, size)
        if not len(proposals):  # the method takes one region or more
            return proposals, proposals.new_zeros(0), torch.zeros(0, dtype=torch.int64), *others
        probabilities, deltas = self._boxes(self.regions(feature, proposals))
        return *self.detect(probabilities, deltas, proposals, size), *others

    def propose(self, objectness: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """1 x A x h x w logits and 1 x 4A x h x w deltas -> at most ``proposals_after_nms`` boxes, best first."""
        s = self.settings
        boxes, present = propose(
            objectness,
            deltas,
            torch.tensor(s.cell_anchors, dtype=torch.float32),
            s.stride,
            size,
            s.proposals_before_nms,
            s.proposals_after_nms,
            s.proposals_iou,
        )
        return boxes[present]

    def regions(self, feature: Tensor, proposals: Tensor) -> Tensor:
        """1 x C x h x w feature and R x 4 boxes -> R x C x n x n."""
        s = self.settings
        return roi_align(feature, [proposals], s.resolution, 1 / s.stride, 0, aligned=True)

    def detect(
        self, probabilities: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R x K probabilities and R x K x 4 deltas of R x 4 proposals -> boxes, scores and labels."""
        s = self.settings
        present = torch.ones(len(proposals), dtype=torch.bool)
        boxes, scores, labels = detect(
            probabilities,
            deltas,
            proposals,
            present,
            size,
            torch.tensor(s.score_threshold, dtype=torch.float32),
            s.iou,
            s.max_detections,
        )
        found = labels >= 0
        return boxes[found], scores[found], labels[found]


def host_header() -> Path:
    """The C++ header with the same functions."""
    return Path(__file__).with_name("cpp") / "lite_rcnn_host.hpp"
