"""Semantic segmentation: a single convolution on one path (Appendix F.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Sample, register_task, require_names
from d2go_fbnetv5.tasks.images import image_sizes, label_map, label_size, padded_maps, padded_size
from d2go_fbnetv5.tasks.metrics import SemSegMetrics
from d2go_fbnetv5.tasks.pixel_head import PixelHead


@register_task("seg")
class Segmentation(PixelHead):
    """Cross-entropy over the pixels of the samples that have a ``sem_seg``; logits are upsampled bilinearly.

    Args:
        channels: channels of each path.
        info: needs ``sem_seg_names``; pixels of ``sem_seg_ignore`` have no part in the loss.
        feature: the path that the head reads. Lite MaskFormer, which segmenters are then trained with, reads ``path1``
            and ``path3``.
        kernel_size, input_norm: as `PixelHead` has them.

    Outputs: ``sem_seg``, H x W int64, the best-scored class of each pixel of the sample's ``height`` x ``width``,
    to which the image's logits are enlarged.
    """

    primary_metric = "mIoU"

    def __init__(
        self,
        channels: Mapping[str, int],
        info: DatasetInfo,
        feature: str = "path2",
        kernel_size: int = 1,
        input_norm: bool = False,
    ):
        names = require_names(self.name, "sem_seg_names", info)
        super().__init__(channels, len(names), feature, kernel_size, input_norm)
        self.ignore = info.sem_seg_ignore

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        size = padded_size(batch)
        if not self.training:
            logits = self.maps(features, size)
            return [
                {"sem_seg": label_map(x[:, :h, :w], label_size(sample))}
                for x, (h, w), sample in zip(logits, image_sizes(batch), batch, strict=True)
            ]
        labelled = [i for i, sample in enumerate(batch) if "sem_seg" in sample]
        if not labelled:
            return {}
        logits = self.maps(features, size, labelled)
        truth = padded_maps([batch[i] for i in labelled], "sem_seg", size, self.ignore, torch.int64)
        if truth.device != logits.device:
            truth = narrowed(truth).to(logits.device, non_blocking=True).long()
        total = F.cross_entropy(logits, truth, ignore_index=self.ignore, reduction="sum")
        return {"loss_sem_seg": total / (truth != self.ignore).sum().clamp(min=1)}

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return SemSegMetrics(info.sem_seg_names, info.sem_seg_ignore)


def narrowed(labels: Tensor) -> Tensor:
    """Return whole numbers in the smallest of uint8, int16 and their own type that holds all of them."""
    low, high = labels.aminmax()
    for kind in (torch.uint8, torch.int16):
        if torch.iinfo(kind).min <= int(low) and int(high) <= torch.iinfo(kind).max:
            return labels.to(kind)
    return labels
