"""Image classification: FBNetV3's MBPool and one linear layer on Path 3 (Appendix F.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch.blocks import MBPool
from d2go_fbnetv5.tasks.base import (
    DatasetInfo,
    Evaluator,
    Sample,
    Task,
    register_task,
    require_names,
)
from d2go_fbnetv5.tasks.metrics import TopKAccuracy
from d2go_fbnetv5.utils.rules import between, require_each


@register_task("cls")
class Classification(Task):
    """Cross-entropy over the samples that have a ``class_label``.

    Args:
        channels: channels of ``path3``.
        info: needs ``class_names``.
        pool_channels: channels after MBPool; 1984 in FBNetV3-A.
        expansion: MBPool's expansion.
        dropout: probability, before the linear layer.
        label_smoothing: in 0..1.

    Outputs: ``class_scores``, K probabilities.
    """

    in_features = ("path3",)
    primary_metric = "top1"

    def __init__(
        self,
        channels: Mapping[str, int],
        info: DatasetInfo,
        pool_channels: int = 1984,
        expansion: int = 6,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        names = require_names(self.name, "class_names", info)
        whose = f" of task {self.name!r}"
        require_each(between(1), whose, pool_channels=pool_channels, expansion=expansion)
        require_each(between(0, 1), whose, dropout=dropout, label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing
        self.pool = MBPool(channels["path3"], pool_channels, expansion)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(pool_channels, len(names))
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if not self.training:
            return [{"class_scores": scores} for scores in self._logits(features).float().softmax(1)]
        labelled = [i for i, sample in enumerate(batch) if "class_label" in sample]
        if not labelled:
            return {}
        # The whole batch goes through MBPool, so that its batch norm sees as many images as the backbone's.
        logits = self._logits(features)
        if len(labelled) < len(batch):
            logits = logits[labelled]
        labels = torch.tensor([int(batch[i]["class_label"]) for i in labelled])
        labels = labels.to(logits.device, non_blocking=True)  # a GPU need not catch up first
        return {"loss_class": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return TopKAccuracy()

    def _logits(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.fc(self.dropout(self.pool(features["path3"]).flatten(1)))
