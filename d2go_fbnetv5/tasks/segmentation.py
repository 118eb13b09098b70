"""Semantic segmentation: a single convolution on one path (Appendix F.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch.blocks import zero_bias
from d2go_fbnetv5.tasks.base import (
    DatasetInfo,
    Evaluator,
    Sample,
    Task,
    register_task,
    require_feature,
    require_names,
)
from d2go_fbnetv5.tasks.images import image_sizes, label_map, label_size, padded_size
from d2go_fbnetv5.tasks.metrics import SemSegMetrics
from d2go_fbnetv5.utils.errors import InputError


@register_task("seg")
class Segmentation(Task):
    """Cross-entropy over the pixels of the samples that have a ``sem_seg``; logits are upsampled bilinearly.

    Args:
        channels: channels of each path.
        info: needs ``sem_seg_names``; pixels of ``sem_seg_ignore`` have no part in the loss.
        feature: the path that the head reads. Lite MaskFormer, which segmenters are then trained with, reads ``path1``
            and ``path3``.
        kernel_size: of the convolution, odd.
        input_norm: batch norm before the convolution, over labelled and unlabelled samples alike. Without it the
            head meets features whose scale grows with the number of blocks that a topology keeps.

    Outputs: ``sem_seg``, H x W int64, the best-scored class of each pixel of the sample's ``height`` x ``width``,
    to which the image's logits are enlarged.
    """

    in_features = ("path2",)
    primary_metric = "mIoU"

    def __init__(
        self,
        channels: Mapping[str, int],
        info: DatasetInfo,
        feature: str = "path2",
        kernel_size: int = 1,
        input_norm: bool = False,
    ):
        super().__init__()
        names = require_names(self.name, "sem_seg_names", info)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(
                f"option 'kernel_size' of task {self.name!r} is {kernel_size}; it must be odd and positive"
            )
        self.ignore = info.sem_seg_ignore
        width = require_feature(self.name, feature, channels)
        self.in_features = (feature,)
        self.norm = nn.BatchNorm2d(width) if input_norm else nn.Identity()
        self.predictor = nn.Conv2d(width, len(names), kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.predictor.weight, std=0.01)
        zero_bias(self.predictor)

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        size, (name,) = padded_size(batch), self.in_features
        if not self.training:
            logits = self._logits(self.norm(features[name]), size)
            return [
                {"sem_seg": label_map(x[:, :h, :w], label_size(sample))}
                for x, (h, w), sample in zip(logits, image_sizes(batch), batch, strict=True)
            ]
        labelled = [i for i, sample in enumerate(batch) if "sem_seg" in sample]
        if not labelled:
            return {}
        feature = self.norm(features[name])
        if len(labelled) < len(batch):
            feature = feature[labelled]
        logits = self._logits(feature, size)
        truth = padded_sem_seg([batch[i] for i in labelled], size, self.ignore)
        if truth.device != logits.device:
            truth = narrowed(truth).to(logits.device, non_blocking=True).long()
        total = F.cross_entropy(logits, truth, ignore_index=self.ignore, reduction="sum")
        return {"loss_sem_seg": total / (truth != self.ignore).sum().clamp(min=1)}

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return SemSegMetrics(info.sem_seg_names, info.sem_seg_ignore)

    def _logits(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample_bilinear(self.predictor(feature).float(), size)


def upsample_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Map N x C x h x w -> N x C x H x W as ``F.interpolate`` has it with ``align_corners=False``, by matrix products.

    The gradient of ``interpolate`` takes a CPU longer than all else that the head does.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows, columns = (
            F.interpolate(torch.eye(old, device=maps.device, dtype=maps.dtype)[None], new, mode="linear")[0]
            for old, new in zip(maps.shape[2:], size, strict=True)
        )
        return rows.T @ maps.contiguous() @ columns


def narrowed(labels: Tensor) -> Tensor:
    """Return whole numbers in the smallest of uint8, int16 and their own type that holds all of them."""
    low, high = labels.aminmax()
    for kind in (torch.uint8, torch.int16):
        if torch.iinfo(kind).min <= int(low) and int(high) <= torch.iinfo(kind).max:
            return labels.to(kind)
    return labels


def padded_sem_seg(batch: Sequence[Sample], size: tuple[int, int], ignore: int) -> Tensor:
    """Return N x H x W int64: each sample's ``sem_seg``, padded right and bottom to ``size`` with ``ignore``.

    Raises:
        ValueError: a label map is not as large as its image.
    """
    device = batch[0]["sem_seg"].device  # where the maps are, so that none of them has to come from a GPU
    maps = torch.full((len(batch), *size), ignore, dtype=torch.int64, device=device)
    for padded, sample, (h, w) in zip(maps, batch, image_sizes(batch), strict=True):
        if tuple(sample["sem_seg"].shape) != (h, w):
            raise InputError(
                f"sem_seg of image {sample.get('image_id')} is {tuple(sample['sem_seg'].shape)}, its image {(h, w)}"
            )
        padded[:h, :w] = sample["sem_seg"]
    return maps
