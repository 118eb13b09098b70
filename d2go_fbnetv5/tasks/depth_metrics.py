"""Metrics of depth: its relative error, its error, and the share of pixels that are nearly right."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.tasks.gather import gather_records, warn_unlabelled
from d2go_fbnetv5.utils.errors import InputError

_NEARLY = 1.25


def has_depth(depth: Tensor) -> Tensor:
    """Return where a depth is one: positive and finite. Readers write 0 where there is none."""
    return (depth > 0) & depth.isfinite()


def aligned(depth: Tensor, truth: Tensor) -> Tensor:
    """Return P depths scaled and shifted to come closest to P true ones, in the sum of squares.

    The scale is not negative: depths in the wrong order become the truth's mean, as depths that are all equal do.
    """
    difference = depth - depth.mean()
    spread = difference.square().sum()
    scale = (difference * (truth - truth.mean())).sum() / spread.clamp(min=torch.finfo(depth.dtype).tiny)
    return difference * scale.clamp(min=0) + truth.mean()


class DepthMetrics:
    """``AbsRel``, ``RMSE`` and ``delta1``: of an image's labelled pixels, and then the mean over images.

    With a predicted depth p and a true one y, ``AbsRel`` is the mean of abs(p - y) / y, ``RMSE`` the root of the mean
    of (p - y)^2, in the truth's unit, and ``delta1`` the share of pixels where p and y differ by a factor below 1.25
    (Eigen et al., arXiv 1406.2283). Without any labelled pixel they are NaN.

    Args:
        units: ``DatasetInfo.depth_units``; a relative depth is scaled and shifted first (`aligned`).
    """

    def __init__(self, units: Sequence[str] = ("metres",)) -> None:
        self.is_relative = "relative" in units
        self.reset()

    def reset(self) -> None:
        self._images: dict[int, tuple[float, float, float]] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Reads ``depth`` (H x W) of both, which are as large as the original image.

        Raises:
            ValueError: the two maps differ in size.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if "depth" not in sample or sample["image_id"] in self._images:
                continue
            found, truth = output["depth"], sample["depth"].to(output["depth"].device)
            if truth.shape != found.shape:
                raise InputError(
                    f"depth of image {sample['image_id']} is {tuple(truth.shape)}, but its prediction "
                    f"{tuple(found.shape)}; both must have the sample's height and width"
                )
            counted = has_depth(truth)
            if not counted.any():
                continue
            found, truth = found[counted].double(), truth[counted].double()
            if self.is_relative:
                found = aligned(found, truth)
            error = (found - truth).abs()
            nearly = (found < _NEARLY * truth) & (truth < _NEARLY * found)  # not where found is negative
            metrics = ((error / truth).mean(), error.square().mean().sqrt(), nearly.double().mean())
            absolute, root, share = torch.stack(metrics).tolist()
            self._images[int(sample["image_id"])] = (absolute, root, share)

    def evaluate(self) -> dict[str, float]:
        images = list(gather_records(self._images).values())
        if not images:
            warn_unlabelled("depth", "depth")
        return {
            name: math.fsum(values) / len(images) if images else math.nan
            for name, values in zip(
                ("AbsRel", "RMSE", "delta1"), zip(*images, strict=True) if images else [()] * 3, strict=True
            )
        }
