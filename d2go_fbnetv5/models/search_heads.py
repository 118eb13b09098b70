"""The models' own heads as heads of a search: ``SEARCH.HEADS.det.head: lite``, so that a network can be taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.models.base import SearchedModel
from d2go_fbnetv5.models.lite_depth import LiteDepth
from d2go_fbnetv5.models.lite_maskformer import LiteMaskFormer
from d2go_fbnetv5.models.lite_rcnn import LiteRCNN
from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Sample, Task, register_head, require_names
from d2go_fbnetv5.tasks.detection import STRIDES
from d2go_fbnetv5.tasks.images import padded_size
from d2go_fbnetv5.utils.options import bind_options

_Model = TypeVar("_Model", bound=SearchedModel)

# A model's arguments that are no options of its head: a configuration has other keys for them, or the data set.
SET_ELSEWHERE = (
    "backbone",
    "num_classes",
    "ignore",
    "over_ranks",
    "pixel_mean",
    "pixel_std",
    "teacher",
    "teacher_weight",
)


class Features(nn.Module):
    """Stands where a model has its backbone, and says what features its head will be given."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.strides = {name: STRIDES[name] for name in channels}


def without_backbone(
    kind: type[_Model], channels: Mapping[str, int], num_classes: int, **options: Any
) -> _Model:
    """Build a model for the sake of its head, whose features come from elsewhere.

    Args:
        kind: the model's class.
        channels: of each path, those that the model reads among them.
        options: of the class.
    """
    # Of its backbone a head asks channels and strides, and the losses of a head's features nothing.
    features = cast(Backbone, Features({name: channels[name] for name in kind.in_features}))
    return kind(features, num_classes, **options)


class ModelHead(Task):
    """The head of a model for one task, trained on a supernet's features by the model's own losses.

    Args:
        channels: of each path.
        info: needs the names that the model's classes have.
        options: of the model, as MODEL.FBNETV5.HEAD has them.

    Attributes:
        kind: the model's class, whose ``head_losses`` and ``head_predict`` are called.
        options: that it was made with.
    """

    kind: ClassVar[type[SearchedModel]]

    def __init__(self, channels: Mapping[str, int], info: DatasetInfo, **options: Any) -> None:
        super().__init__()
        names = require_names(self.name, self.kind.names_of, info)
        self.options = bind_options(f"head 'lite' of task {self.name!r}", self.kind, options, SET_ELSEWHERE)
        self.in_features = self.kind.in_features
        self.model = without_backbone(self.kind, channels, len(names), **self.options, **self.more(info))

    def more(self, info: DatasetInfo) -> dict[str, Any]:
        """Return the model's arguments that the data set says."""
        return {}

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if not self.training:
            return self.model.head_predict(features, batch, padded_size(batch))
        if not any(self.kind.label in sample for sample in batch):
            return {}
        return self.model.head_losses(features, batch, padded_size(batch))

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return self.model.evaluator(info)


@register_head("det", "lite")
class LiteRCNNHead(ModelHead):
    """Lite R-CNN's region proposals and box head, on Path 1."""

    kind = LiteRCNN
    in_features, primary_metric = LiteRCNN.in_features, "AP"


@register_head("seg", "lite")
class LiteMaskFormerHead(ModelHead):
    """Lite MaskFormer's decoders, on Paths 1 and 3.

    The loss is divided by the segments of the part of a batch that it is of: each part has a topology of its own, and
    not all processes have as many of them.
    """

    kind = LiteMaskFormer
    in_features, primary_metric = LiteMaskFormer.in_features, "mIoU"

    def more(self, info: DatasetInfo) -> dict[str, Any]:
        return {"ignore": info.sem_seg_ignore, "over_ranks": False}


@register_head("depth", "lite")
class LiteDepthHead(ModelHead):
    """LiteDepth's decoder, on Paths 1 to 3."""

    kind = LiteDepth
    in_features, primary_metric, higher_is_better = LiteDepth.in_features, "AbsRel", False
