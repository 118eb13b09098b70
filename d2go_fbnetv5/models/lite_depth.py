"""LiteDepth: the depth of each pixel by a decoder of a few depthwise blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.arch.blocks import ConvBNAct, InvertedResidual, zero_bias
from d2go_fbnetv5.models.base import PIXEL_MEAN, PIXEL_STD, SearchedModel, chosen, zero_loss
from d2go_fbnetv5.tasks.base import DatasetInfo, Sample
from d2go_fbnetv5.tasks.depth import depth_losses, depth_outputs, padded_depth
from d2go_fbnetv5.tasks.depth_metrics import DepthMetrics
from d2go_fbnetv5.tasks.images import upsample_bilinear
from d2go_fbnetv5.utils.rules import between, require_each


class DepthDecoder(nn.Module):
    """Paths 1 to 3 -> logarithms of depth, N x 1 x ``finer`` h x ``finer`` w for a Path 1 of h x w.

    Each path is projected to ``dim`` channels; from Path 3 upwards the sum so far is enlarged, added to the next path's
    and goes through a depthwise block (k3). A feature of Path 1 at last gives ``finer`` x ``finer`` values.

    Args:
        in_channels: of Path 1, Path 2 and Path 3.
    """

    def __init__(self, in_channels: Sequence[int], dim: int = 64, finer: int = 4) -> None:
        super().__init__()
        self.project1, self.project2, self.project3 = (
            ConvBNAct(channels, dim, 1, act=None) for channels in in_channels
        )
        self.block1, self.block2 = (InvertedResidual(dim, dim, 3, expansion=1) for _ in range(2))
        self.predictor = nn.Conv2d(dim, finer * finer, 1)
        self.finer = nn.PixelShuffle(finer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        zero_bias(self.predictor)

    def forward(self, path1: Tensor, path2: Tensor, path3: Tensor) -> Tensor:
        x = self.block2(self.project2(path2) + _enlarged(self.project3(path3), path2))
        x = self.block1(self.project1(path1) + _enlarged(x, path1))
        return self.finer(self.predictor(x))


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=[like.shape[2], like.shape[3]], mode="bilinear", align_corners=False)


class LiteDepth(SearchedModel):
    """A `DepthDecoder` on Paths 1 to 3.

    Reads ``depth`` of a sample (H x W floats, 0 where there is none); predicts ``depth``, the same of the sample's
    ``height`` x ``width`` and in the same unit, positive everywhere.

    Args:
        backbone: has the outputs ``path1``, ``path2`` and ``path3``.
        num_classes: maps that are predicted; 1.
        dim: channels of the decoder.
        finer: values along each side of a feature of Path 1.
        invariance, gradient_weight: of the loss (`depth_losses`).
    """

    task, label, names_of = "depth", "depth", "depth_units"
    in_features = ("path1", "path2", "path3")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 1,
        dim: int = 64,
        finer: int = 4,
        invariance: float = 0.5,
        gradient_weight: float = 0.5,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        super().__init__(backbone, num_classes, pixel_mean, pixel_std, size_divisibility)
        require_each(between(1, 1), num_classes=num_classes)
        require_each(between(8, 1024), dim=dim)
        require_each(between(1, 8), finer=finer)
        require_each(between(0, 1), invariance=invariance)
        require_each(between(0, 1000), gradient_weight=gradient_weight)
        self.decoder = DepthDecoder([backbone.channels[name] for name in self.in_features], dim, finer)
        self.invariance, self.gradient_weight = invariance, gradient_weight

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``loss_depth`` and ``loss_depth_gradient``."""
        logs = self._logs(features, padded)
        labelled = [i for i, sample in enumerate(batch) if "depth" in sample]
        if not labelled:
            names = ("loss_depth", "loss_depth_gradient") if self.gradient_weight else ("loss_depth",)
            return {name: zero_loss(logs) for name in names}
        truth = padded_depth([batch[i] for i in labelled], padded, logs.device)
        return depth_losses(chosen(logs, labelled), truth, self.invariance, self.gradient_weight)

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        return depth_outputs(self._logs(features, padded), batch)

    def _logs(self, features: Mapping[str, Tensor], padded: tuple[int, int]) -> Tensor:
        logs = self.decoder(*(features[name] for name in self.in_features))
        return upsample_bilinear(logs.to(torch.float32), padded)[:, 0]

    def evaluator(self, info: DatasetInfo) -> DepthMetrics:
        return DepthMetrics(info.depth_units)
