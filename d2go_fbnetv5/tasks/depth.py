"""Depth of each pixel: a single convolution on one path, as segmentation has it (Appendix F.1), and its losses."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Sample, register_task, require_names
from d2go_fbnetv5.tasks.depth_metrics import DepthMetrics, has_depth
from d2go_fbnetv5.tasks.images import image_size, image_sizes, label_size, padded_maps, padded_size
from d2go_fbnetv5.tasks.labels import register_label
from d2go_fbnetv5.tasks.pixel_head import PixelHead
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import between, require_each

# Nearest: between two surfaces there is none, and 0 is no depth. Where an image is enlarged its depth stays the same.
register_label("depth", "map")

_SCALES = 4  # of the gradient's matching, MegaDepth's


@register_task("depth")
class DepthEstimation(PixelHead):
    """Scale-invariant loss of the logarithm of depth, and of its gradient, over the pixels that have a ``depth``.

    Args:
        channels: channels of each path.
        info: needs ``depth_units``.
        feature: the path that the head reads. LiteDepth, which is then trained, reads ``path1``, ``path2`` and
            ``path3``.
        kernel_size, input_norm: as `PixelHead` has them.
        invariance: see `depth_losses`.
        gradient_weight: of the gradient's loss.

    Outputs: ``depth``, H x W float32 for the sample's ``height`` x ``width``, in the unit of the labels.
    """

    primary_metric = "AbsRel"
    higher_is_better = False

    def __init__(
        self,
        channels: Mapping[str, int],
        info: DatasetInfo,
        feature: str = "path2",
        kernel_size: int = 1,
        input_norm: bool = False,
        invariance: float = 0.5,
        gradient_weight: float = 0.5,
    ):
        require_names(self.name, "depth_units", info)
        whose = f" of task {self.name!r}"
        require_each(between(0, 1), whose, invariance=invariance)
        require_each(between(0, 1000), whose, gradient_weight=gradient_weight)
        super().__init__(channels, 1, feature, kernel_size, input_norm)
        self.invariance, self.gradient_weight = invariance, gradient_weight

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        size = padded_size(batch)
        if not self.training:
            return depth_outputs(self.maps(features, size)[:, 0], batch)
        labelled = [i for i, sample in enumerate(batch) if "depth" in sample]
        if not labelled:
            return {}
        logs = self.maps(features, size, labelled)[:, 0]
        truth = padded_depth([batch[i] for i in labelled], size, logs.device)
        return depth_losses(logs, truth, self.invariance, self.gradient_weight)

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return DepthMetrics(info.depth_units)


def depth_outputs(logs: Tensor, batch: Sequence[Sample]) -> list[dict[str, Tensor]]:
    """Return ``depth``, H x W, for each sample's ``height`` and ``width``.

    Args:
        logs: N x H x W, the logarithm of the padded images' depth; enlarged, where it has to be, before it is undone.
    """
    outputs = []
    for log, (height, width), sample in zip(logs, image_sizes(batch), batch, strict=True):
        log, size = log[:height, :width], label_size(sample)
        if image_size(log) != size:
            log = F.interpolate(log[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        outputs.append({"depth": log.exp()})
    return outputs


def padded_depth(batch: Sequence[Sample], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return N x H x W float32 on a device: each sample's ``depth``, padded right and bottom with 0, which is none.

    Raises:
        InputError: a depth is not as large as its image, or of whole numbers, as a label map is.
    """
    for sample in batch:
        if not sample["depth"].is_floating_point():
            raise InputError(
                f"depth of image {sample.get('image_id')} is of {sample['depth'].dtype}, allowed are floating-point "
                "numbers: a label map is no depth"
            )
    return padded_maps(batch, "depth", size, 0, torch.float32).to(device, non_blocking=True)


def depth_losses(
    logs: Tensor, truth: Tensor, invariance: float = 0.5, gradient_weight: float = 0.5
) -> dict[str, Tensor]:
    """Losses of predicted logarithms of depth, each the mean over the images that have any.

    Args:
        logs, truth: N x H x W; pixels whose truth is none have no part (`has_depth`).
        invariance: Eigen's lambda (arXiv 1406.2283, Eq. 4), in 0..1: which part of a depth that is wrong by one factor
            everywhere is forgiven; 1 is for labels whose scale differs from image to image.
        gradient_weight: of the second loss; 0 leaves it out.

    Returns:
        ``loss_depth``, the mean square of the difference d of the logarithms less ``invariance`` times its mean's
        square, and ``loss_depth_gradient``, the mean of its steps |d(x + s) - d(x)| along rows and along columns, in
        images of every s-th pixel, for s of 1, 2, 4 and 8 (MegaDepth, arXiv 1804.00607, Eq. 3).
    """
    valid = has_depth(truth)
    difference = torch.where(valid, logs - torch.where(valid, truth, 1).log(), 0)
    mean, square = (_mean(values, valid) for values in (difference, difference.square()))
    images = valid.flatten(1).any(1).sum().clamp(min=1)
    losses = {"loss_depth": (square - invariance * mean.square()).sum() / images}
    if gradient_weight:
        steps = [
            _mean((part[1:] - part[:-1]).abs().movedim(1, 0), (there[1:] & there[:-1]).movedim(1, 0))
            for scale in (2**k for k in range(_SCALES))
            for axis in (1, 2)
            for part, there in [(x[:, ::scale, ::scale].movedim(axis, 0) for x in (difference, valid))]
        ]
        losses["loss_depth_gradient"] = gradient_weight * torch.stack(steps).sum() / images
    return losses


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return N means of N x H x W over the pixels that count, 0 where none does."""
    return (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
