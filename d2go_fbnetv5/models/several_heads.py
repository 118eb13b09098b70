"""Several heads on one searched backbone, which runs once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import PATHS, Backbone
from d2go_fbnetv5.models.base import MOST, PIXEL_MEAN, PIXEL_STD, SearchedModel
from d2go_fbnetv5.models.image_classifier import ImageClassifier
from d2go_fbnetv5.models.lite_depth import LiteDepth
from d2go_fbnetv5.models.lite_maskformer import LiteMaskFormer
from d2go_fbnetv5.models.lite_rcnn import LiteRCNN
from d2go_fbnetv5.models.search_heads import SET_ELSEWHERE
from d2go_fbnetv5.tasks.base import DatasetInfo, Evaluator, Sample
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options
from d2go_fbnetv5.utils.rules import between, require_each

MODELS: dict[str, type[SearchedModel]] = {
    kind.task: kind for kind in (ImageClassifier, LiteRCNN, LiteMaskFormer, LiteDepth)
}
# Options of a model by itself that no head of several has: what is done to images is done for all of them.
_OF_ALL = (*SET_ELSEWHERE, "mixup", "cutmix", "size_divisibility")


class SeveralHeads(SearchedModel):
    """The heads of several models on one backbone, trained together on images that need not have all labels.

    Each head's losses are those of its model over the samples that have its label. In training they are named
    ``loss_<task>_<name>``; in evaluation a sample's output has the keys of all of them.

    Without ``loss_weights`` the losses of each head are weighted by a learned uncertainty (Kendall et al., arXiv
    1705.07115): with s the logarithm of a head's variance its sum of losses L counts as exp(-s) L + s, and where no
    sample of a batch has its label not at all.

    Args:
        backbone: has the outputs that the heads read.
        num_classes: of each head, by its task's name.
        heads: options of each head by its task's name, "cls", "det", "seg" or "depth": those of the model that has it
            by itself, but for what is done to images (mixup, cutmix).
        loss_weights: a fixed weight, 0 or more, for each head's losses; {} for learned ones.
        ignore: as `LiteMaskFormer` has it.
        size_divisibility: images are padded to a multiple of it, those of a classifier, too.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: Mapping[str, int],
        heads: Mapping[str, Mapping[str, Any]],
        loss_weights: Mapping[str, float] | None = None,
        ignore: int = 255,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        parts = self.parts({"heads": heads})
        if set(num_classes) != set(parts):
            raise InputError(f"num_classes is of {', '.join(num_classes)}; allowed is of {', '.join(parts)}")
        self.in_features = joint_features(parts.values())
        super().__init__(backbone, dict(num_classes), pixel_mean, pixel_std, size_divisibility)
        self.heads = nn.ModuleDict()
        for task, kind in parts.items():
            options = bind_options(f"head {task!r}", kind, heads[task], _OF_ALL)
            if kind is LiteMaskFormer:
                options["ignore"] = ignore
            head = kind(
                backbone,
                num_classes[task],
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
                size_divisibility=size_divisibility,
                **options,
            )
            del head.backbone
            self.heads[task] = head
        self.loss_weights = dict(loss_weights or {})
        if self.loss_weights and set(self.loss_weights) != set(parts):
            raise InputError(
                f"loss_weights is of {', '.join(self.loss_weights)}; allowed is of {', '.join(parts)}, or of none, so "
                "that they are learned"
            )
        require_each(between(0, MOST), **{f"loss_weights.{task}": w for task, w in self.loss_weights.items()})
        self.log_variances = None if self.loss_weights else nn.Parameter(torch.zeros(len(parts)))

    @classmethod
    def parts(cls, options: Mapping[str, Any]) -> dict[str, type[SearchedModel]]:
        """As `SearchedModel.parts`. An InputError says that ``heads`` are none, or which is unknown."""
        heads = options.get("heads") or {}
        unknown = [task for task in heads if task not in MODELS]
        if unknown or not heads:
            found = f"has {unknown[0]!r}" if unknown else "is empty"
            raise InputError(f"option 'heads' {found}; allowed are one or more of {', '.join(MODELS)}")
        return {task: MODELS[task] for task in heads}

    def singles(self) -> dict[str, SearchedModel]:
        return {task: self._alone(cast(SearchedModel, head)) for task, head in self.heads.items()}

    def _alone(self, head: SearchedModel) -> SearchedModel:
        model = copy.copy(head)
        model._modules = dict(head._modules)  # else the head itself would get a backbone
        model.backbone = self.backbone
        return model

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        uncertainties = []
        for place, (task, head) in enumerate(self._heads()):
            weight: Tensor | float = self.loss_weights.get(task, 1.0)
            if self.log_variances is not None:
                log_variance = self.log_variances[place]
                weight = (-log_variance).exp()
                uncertainties.append(log_variance * any(head.label in sample for sample in batch))
            for name, loss in head.head_losses(features, batch, padded).items():
                losses[f"loss_{task}_{name.removeprefix('loss_')}"] = weight * loss
        if uncertainties:
            losses["loss_uncertainty"] = torch.stack(uncertainties).sum()
        return losses

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        found = [head.head_predict(features, batch, padded) for _, head in self._heads()]
        return [
            {key: value for part in parts for key, value in part.items()}
            for parts in zip(*found, strict=True)
        ]

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        return _Evaluators({task: head.evaluator(info) for task, head in self._heads()})

    def _heads(self) -> list[tuple[str, SearchedModel]]:
        return [(task, cast(SearchedModel, head)) for task, head in self.heads.items()]


class _Evaluators:
    """Evaluators of one output dict each; their metrics are named ``<task>/<name>``."""

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        for evaluator in self._evaluators.values():
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, float]:
        return {
            f"{task}/{name}": value
            for task, evaluator in self._evaluators.items()
            for name, value in evaluator.evaluate().items()
        }


def joint_features(kinds: Collection[type[SearchedModel]]) -> tuple[str, ...]:
    """Return the paths that the heads of models read, each once."""
    return tuple(path for path in PATHS if any(path in kind.in_features for kind in kinds))
