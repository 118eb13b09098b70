"""FBNetV3's image classifier on a searched backbone (Appendix F.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.models.base import (
    MOST,
    PIXEL_MEAN,
    PIXEL_STD,
    SearchedModel,
    chosen,
    require_labels,
    zero_loss,
)
from d2go_fbnetv5.models.distillation import TeacherClassifier
from d2go_fbnetv5.tasks.base import DatasetInfo, Sample
from d2go_fbnetv5.tasks.metrics import TopKAccuracy
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import between, require_each


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
        mixup, cutmix: the alpha of either way to blend a training batch's images and labels, 0 for none; of both
            one is drawn for each batch, whose images must then have one size.
        teacher: for hard distillation, the class that it chooses is a second label.
        teacher_weight: the share of that label's cross-entropy in the loss, in 0..1.
        size_divisibility: 1, for a classifier's images have one size and are counted unpadded in Table 2.
    """

    task, label, names_of = "cls", "class_label", "class_names"
    in_features = ("path3",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        teacher: TeacherClassifier | None = None,
        teacher_weight: float = 0.5,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 1,
    ) -> None:
        super().__init__(backbone, num_classes, pixel_mean, pixel_std, size_divisibility)
        family = backbone.family
        require_each(
            between(0, 1), dropout=dropout, label_smoothing=label_smoothing, teacher_weight=teacher_weight
        )
        require_each(between(0, MOST), mixup=mixup, cutmix=cutmix)
        self.label_smoothing = label_smoothing
        self.teacher, self.teacher_weight = teacher, teacher_weight
        blends = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]
        self._blend = v2.RandomChoice(blends) if blends else None
        self.head = ClassifierHead(family.build_pool(), family.pool.channels, num_classes, dropout)

    def logits(self, images: Tensor) -> Tensor:
        """Map N x 3 x H x W, normalised -> N x K."""
        return self.head(self.backbone(images)["path3"]).float()

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """``loss_class``: cross-entropy over the samples that have a ``class_label``, and ``loss_teacher``: that
        of the teacher's choices, if there is a teacher."""
        images, sizes = self.images(batch)
        labelled, target = self._targets(batch, images.device)
        if not labelled:
            return {"loss_class": zero_loss(self.logits(images))}  # so that batch norm sees every batch
        if self._blend is not None:
            if len(set(sizes)) > 1:
                raise InputError("mixup and cutmix need images of one size in a batch, such as crops")
            images, target = self._blend(chosen(images, labelled), target)
            labelled = list(range(len(images)))
        logits = chosen(self.logits(images), labelled)
        losses = {"loss_class": self._cross_entropy(logits, target)}
        if self.teacher is not None:
            std, mean = self.pixel_std.view(3, 1, 1), self.pixel_mean.view(3, 1, 1)
            choice = self.teacher(chosen(images, labelled) * std + mean).argmax(1)
            losses["loss_class"] = losses["loss_class"] * (1 - self.teacher_weight)
            losses["loss_teacher"] = F.cross_entropy(logits, choice) * self.teacher_weight
        return losses

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``loss_class``, of images that are not blended, without a teacher."""
        logits = self.head(features["path3"]).float()
        labelled, target = self._targets(batch, logits.device)
        loss = self._cross_entropy(chosen(logits, labelled), target) if labelled else zero_loss(logits)
        return {"loss_class": loss}

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        return [{"class_scores": scores} for scores in self.head(features["path3"]).float().softmax(1)]

    def evaluator(self, info: DatasetInfo) -> TopKAccuracy:
        return TopKAccuracy()

    def _targets(self, batch: Sequence[Sample], device: torch.device) -> tuple[list[int], Tensor]:
        """Return which samples have a ``class_label``, and these."""
        labelled = [i for i, sample in enumerate(batch) if "class_label" in sample]
        labels = [int(batch[i]["class_label"]) for i in labelled]
        for i, label in zip(labelled, labels, strict=True):
            require_labels(torch.as_tensor(label), self.num_classes, "class_label", batch[i])
        # A GPU need not catch up first.
        return labelled, torch.tensor(labels).to(device, non_blocking=True)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
