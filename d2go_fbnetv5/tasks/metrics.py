"""Metrics of classification and semantic segmentation, as fractions in 0..1."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.tasks.gather import gather_records, warn_unlabelled
from d2go_fbnetv5.utils.errors import InputError


class TopKAccuracy:
    """Share of the images whose class is among the k best-scored ones: ``top1``, ``top5``, ...

    Other classes with the true class's score rank before it, so that a constant or NaN output earns nothing. Of no
    more than k classes there is no ``top<k>``, which would be 1 whatever was predicted. Without any labelled image
    the metrics are NaN.
    """

    def __init__(self, topk: Sequence[int] = (1, 5)):
        self.topk = tuple(topk)
        self.reset()

    def reset(self) -> None:
        self._ranks: dict[int, tuple[int, int]] = {}  # the true class's place, and the number of classes

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Reads ``class_label`` of the inputs and ``class_scores`` (K values) of the outputs.

        Raises:
            ValueError: a label out of range.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if "class_label" not in sample or sample["image_id"] in self._ranks:
                continue
            scores, label = output["class_scores"], int(sample["class_label"])
            if not 0 <= label < len(scores):
                raise InputError(
                    f"class_label of image {sample['image_id']} is {label}; allowed: 0..{len(scores) - 1}"
                )
            not_worse = ~(scores < scores[label])  # also true of NaN
            self._ranks[int(sample["image_id"])] = int(not_worse.sum()) - 1, len(scores)

    def evaluate(self) -> dict[str, float]:
        ranks = gather_records(self._ranks).values()
        if not ranks:
            warn_unlabelled("classification", "class_label")
            return {f"top{k}": math.nan for k in self.topk}
        classes = max(classes for _, classes in ranks)
        return {
            f"top{k}": sum(rank < k for rank, _ in ranks) / len(ranks)
            for k in self.topk
            if k < max(classes, 2)
        }


class SemSegMetrics:
    """``mIoU``, ``pixel_accuracy`` and ``IoU-<name>`` of a label map, by the confusion matrix of all pixels.

    ``mIoU`` is the mean over the classes that occur in the truth; a class that does not has no ``IoU-<name>`` either,
    though pixels wrongly given to it still count against the classes that they belong to. Without any labelled pixel
    ``mIoU`` and ``pixel_accuracy`` are NaN.

    Args:
        names: of the K classes.
        ignore: the truth's value for pixels that do not count.
    """

    def __init__(self, names: Sequence[str], ignore: int = 255):
        self.names = tuple(names)
        self.ignore = ignore
        self.reset()

    def reset(self) -> None:
        # Per image the entries of its confusion matrix that are not zero: few, while K x K may be large.
        self._entries: dict[int, tuple[Tensor, Tensor]] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Reads ``sem_seg`` (H x W integers) of both, which are as large as the original image.

        Raises:
            ValueError: the two maps differ in size, or one of them has a class out of range.
        """
        K = len(self.names)
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if "sem_seg" not in sample or image_id in self._entries:
                continue
            prediction = output["sem_seg"]
            truth = sample["sem_seg"].to(prediction.device)
            if truth.shape != prediction.shape:
                raise InputError(
                    f"sem_seg of image {image_id} is {tuple(truth.shape)}, but its prediction "
                    f"{tuple(prediction.shape)}; both must have the sample's height and width"
                )
            counted = truth != self.ignore
            truth, prediction = truth[counted].long(), prediction[counted].long()
            for labels, whose in ((truth, ""), (prediction, "the prediction of ")):
                if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < K:
                    found = sorted(set(labels.unique().tolist()) - set(range(K)))
                    raise InputError(
                        f"{whose}sem_seg of image {image_id} has the classes {found}; allowed: 0..{K - 1}"
                        + ("" if whose else f" and {self.ignore}")
                    )
            counts = torch.bincount(truth * K + prediction, minlength=K * K)
            entries = counts.nonzero().flatten()
            self._entries[int(image_id)] = (entries.cpu(), counts[entries].cpu())

    def confusion(self) -> Tensor:
        """K x K int64 pixel counts over all ranks; rows are the truth, columns the predictions."""
        K = len(self.names)
        matrix = torch.zeros(K * K, dtype=torch.int64)
        for entries, counts in gather_records(self._entries).values():
            matrix[entries] += counts
        return matrix.view(K, K)

    def evaluate(self) -> dict[str, float]:
        confusion = self.confusion().double()
        correct, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        present = truth > 0
        if not present.any():
            warn_unlabelled("segmentation", "sem_seg")
        iou = correct[present] / (truth + predicted - correct)[present]
        names = [name for name, here in zip(self.names, present.tolist(), strict=True) if here]
        return {
            "mIoU": float(iou.mean()),
            "pixel_accuracy": float(correct.sum() / truth.sum()),
            **{f"IoU-{name}": value for name, value in zip(names, iou.tolist(), strict=True)},
        }
