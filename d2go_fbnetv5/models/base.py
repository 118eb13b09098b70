"""The models' common ground: Detectron2's contract, and how samples become a network's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Sample
from d2go_fbnetv5.tasks.images import Output, batch_images, image_size, image_sizes, run_in_groups
from d2go_fbnetv5.utils.errors import InputError

Sizes = list[tuple[int, int]]
Names = (
    tuple[str, ...] | dict[str, tuple[str, ...]]
)  # of a model's classes, by the tasks where it has several

PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, RGB, 0..255
PIXEL_STD = (58.395, 57.12, 57.375)
MOST = 100_000  # of anything that a model has or gives several of; beyond it a number is a slip


class SearchedModel(nn.Module):
    """A searched backbone with a head.

    Training: ``forward(batch)`` returns a dict of scalar losses. A sample without the model's kind of label
    has no part in them; if no sample has it, the losses are zero. Evaluation: ``forward(batch)`` returns one
    dict a sample: boxes in pixels of that sample's own (unpadded) image, label maps of its ``height`` x ``width``.
    Images of different padded sizes are
    then run apart, so that a prediction does not depend on what else is in the batch.

    Args:
        backbone: gives the features that the head reads.
        num_classes: K; of several heads by their tasks' names.
        pixel_mean: per channel of the image, in 0..255.
        pixel_std: per channel, positive.
        size_divisibility: images are padded, right and bottom, to a multiple of it.

    Attributes:
        task: the name that what it predicts has in a search.
        label: the key of a sample that it learns from.
        names_of: the field of `DatasetInfo` that names its classes.
        in_features: names of the paths that its head reads.
    """

    task: ClassVar[str]
    label: ClassVar[str]
    names_of: ClassVar[str]
    in_features: tuple[str, ...]
    num_classes: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | dict[str, int],
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        super().__init__()
        missing = [name for name in self.in_features if name not in backbone.channels]
        if missing:
            raise InputError(
                f"{type(self).__name__} reads {', '.join(self.in_features)}; "
                f"the backbone gives {', '.join(backbone.channels)}"
            )
        self.backbone, self.num_classes = backbone, num_classes
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32), persistent=False)

    @classmethod
    def parts(cls, options: Mapping[str, Any]) -> dict[str, type[SearchedModel]]:
        """Return by its task's name each model that one with these options does the work of: by itself, its own."""
        return {cls.task: cls}

    def singles(self) -> dict[str, SearchedModel]:
        """Return by its task's name each model of one task that this one computes, with the same weights: itself."""
        return {self.task: self}

    @cached_property
    def _least(self) -> int:
        """Return the least side that an image is padded to, in pixels.

        With one feature left on Path 3, batch norm could not be trained on a single image. The bound is itself a
        multiple of 32, so that a small image is padded to what every size_divisibility in use allows.
        """
        feature_sizes = self.backbone.family.feature_sizes
        return next(n for n in range(32, 1024, 32) if min(feature_sizes((n, n))[-1]) > 1)

    def forward(self, batch: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if self.training:
            return self.losses(batch)
        return self.by_padded_size(batch, self.predict)

    def by_padded_size(
        self, batch: Sequence[Sample], predict: Callable[[list[Sample]], Iterable[Output]]
    ) -> list[Output]:
        """Return what ``predict`` gives for each sample, called with those that have the same padded size."""
        sizes = [self.padded_size(size) for size in image_sizes(batch)]
        return run_in_groups(sizes, lambda indices: predict([batch[i] for i in indices]))

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Scalar losses of a training batch."""
        images, _ = self.images(batch)
        return self.head_losses(self.backbone(images), batch, image_size(images))

    def predict(self, batch: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """Predictions for samples that all have the same padded size."""
        images, _ = self.images(batch)
        return self.head_predict(self.backbone(images), batch, image_size(images))

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """`losses` of what the head reads, for a model whose head needs nothing else.

        Args:
            features: of ``in_features``, N x C x h x w.
            padded: (height, width) of the images that they are of.
        """
        raise NotImplementedError

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """`predict` of what the head reads, as `head_losses` takes it."""
        raise NotImplementedError

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        """Return the metrics of the model's kind of prediction on a data set."""
        raise NotImplementedError

    def images(self, batch: Sequence[Sample]) -> tuple[Tensor, Sizes]:
        """Return N x 3 x H x W, normalised and padded with zeros, and each image's own (height, width)."""
        images = batch_images(batch, self.pixel_mean, self.pixel_std, self.size_divisibility)
        height, width = images.shape[-2:]
        target = self.padded_size((height, width))
        return F.pad(images, (0, target[1] - width, 0, target[0] - height)), image_sizes(batch)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that an image of ``size`` is padded to when it is alone in the batch."""
        divisor = self.size_divisibility
        height, width = (max(-(-side // divisor) * divisor, self._least) for side in size)
        return height, width


def require_labels(labels: Tensor, num_classes: int, key: str, sample: Sample) -> None:
    """Raises a ValueError that names the sample if a label is not in 0..num_classes - 1."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InputError(
            f"image {sample.get('image_id')}: {key} {int(labels.min())}..{int(labels.max())}; "
            f"allowed is 0..{num_classes - 1}"
        )


def chosen(values: Tensor, indices: Sequence[int]) -> Tensor:
    """Return some of the first dimension's items, without a copy, or an index to upload, where they are all of it."""
    return values if len(indices) == len(values) else values[indices]


def zero_loss(*tensors: Tensor) -> Tensor:
    """0 that depends on the tensors, so that every parameter behind them still gets a (zero) gradient."""
    return sum((tensor.sum() for tensor in tensors[1:]), start=tensors[0].sum()) * 0.0
