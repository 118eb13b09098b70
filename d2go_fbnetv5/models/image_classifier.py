"""FBNetV3's image classifier on a searched backbone (Appendix F.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.models.base import (
    PIXEL_MEAN,
    PIXEL_STD,
    Sample,
    SearchedModel,
    require_labels,
    zero_loss,
)


class ClassifierHead(nn.Sequential):
    """MBPool, dropout and a linear layer: N x C x H x W -> N x ``num_classes`` logits."""

    def __init__(self, pool: nn.Module, pool_channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = pool
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(pool_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


class ImageClassifier(SearchedModel):
    """MBPool and one linear layer on Path 3.

    Reads ``class_label`` of a sample; predicts ``class_scores``, K probabilities.

    Args:
        backbone: has the output ``path3``; its family says how wide MBPool is.
        num_classes: K.
        dropout: probability, before the linear layer.
        label_smoothing: in 0..1.
        size_divisibility: 1, for a classifier's images have one size and are counted unpadded in Table 2.
    """

    in_features = ("path3",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 1,
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std, size_divisibility)
        family = backbone.family
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.head = ClassifierHead(family.build_pool(), family.pool.channels, num_classes, dropout)

    def logits(self, images: Tensor) -> Tensor:
        """N x 3 x H x W, normalised -> N x K."""
        return self.head(self.backbone(images)["path3"]).float()

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """``loss_class``: cross-entropy over the samples that have a ``class_label``."""
        images, _ = self.images(batch)
        logits = self.logits(images)
        labelled = [i for i, sample in enumerate(batch) if "class_label" in sample]
        if not labelled:
            return {"loss_class": zero_loss(*self.parameters())}
        labels = [torch.as_tensor(int(batch[i]["class_label"])) for i in labelled]
        for i, label in zip(labelled, labels, strict=True):
            require_labels(label, self.num_classes, "class_label", batch[i])
        target = torch.stack(labels).to(logits.device)
        loss = F.cross_entropy(logits[labelled], target, label_smoothing=self.label_smoothing)
        return {"loss_class": loss}

    def predict(self, batch: Sequence[Sample]) -> list[dict[str, Tensor]]:
        images, _ = self.images(batch)
        return [{"class_scores": scores} for scores in self.logits(images).softmax(1)]
