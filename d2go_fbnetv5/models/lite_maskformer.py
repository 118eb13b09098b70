"""Lite MaskFormer: semantic segmentation as mask classification with light decoders (Appendix G.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.models.base import (
    MOST,
    PIXEL_MEAN,
    PIXEL_STD,
    SearchedModel,
    Sizes,
    chosen,
    require_labels,
)
from d2go_fbnetv5.models.maskformer_loss import (
    BIPARTITE,
    FIXED,
    MaskFormerLoss,
    SegmentPrediction,
    Segments,
    segments_of,
)
from d2go_fbnetv5.models.transformer_decoder import TransformerDecoder
from d2go_fbnetv5.tasks.base import DatasetInfo, Sample
from d2go_fbnetv5.tasks.images import image_size, image_sizes, label_map, label_size
from d2go_fbnetv5.tasks.metrics import SemSegMetrics
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import between, require_each

_GROUPS = 32  # of the pixel decoder's norm


class PixelDecoder(nn.Module):
    """Per-pixel embeddings by one 3 x 3 convolution with GroupNorm: N x C x h x w -> N x ``mask_dim`` x h x w.

    No activation follows, for an embedding's dot product with a mask embedding has either sign.
    """

    def __init__(self, in_channels: int, mask_dim: int = 256, num_groups: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, mask_dim, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(num_groups, mask_dim)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, feature: Tensor) -> Tensor:
        return self.norm(self.conv(feature))


class SegmentationModule(nn.Module):
    """Queries and per-pixel embeddings -> each query's class and mask.

    The mask embedding is an MLP of three layers; a mask is its dot product with every pixel's embedding.
    """

    def __init__(self, num_classes: int, dim: int = 256, mask_dim: int = 256) -> None:
        super().__init__()
        self.classes = nn.Linear(dim, num_classes + 1)
        self.mask_embedding = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, mask_dim)
        )

    def forward(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map N x Q x D and N x M x h x w -> N x Q x (K + 1) logits, "no object" last, and N x Q x h x w logits."""
        masks = self.mask_embedding(queries) @ pixels.flatten(2)
        return self.classes(queries), masks.unflatten(2, pixels.shape[-2:])


class LiteMaskFormer(SearchedModel):
    """Pixel decoder on Path 1, transformer decoder on Path 3.

    Reads ``sem_seg`` of a sample (H x W int64, ``ignore`` where nobody cares); predicts ``sem_seg``, the same of
    the sample's ``height`` x ``width`` (the image's where it has none): per pixel the class with the greatest sum
    over queries of class probability (softmax without "no object") times mask probability (sigmoid), a sum that is
    taken at the image's size and enlarged.

    Args:
        backbone: has the outputs ``path1`` and ``path3``.
        num_classes: K.
        ignore: the label of pixels that have no part in the loss.
        num_queries: segments that can be predicted.
        num_layers: of the transformer decoder.
        feedforward_dim: hidden units of its feed-forward part.
        dropout: its dropout probability.
        auxiliary_loss: also score what each layer but the last predicts (with one layer there is none).
        class_weight, mask_weight, dice_weight, no_object_weight: of the loss, MaskFormer's by default.
        over_ranks, matching: see `MaskFormerLoss`.
    """

    task, label, names_of = "seg", "sem_seg", "sem_seg_names"
    in_features = ("path1", "path3")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        ignore: int = 255,
        num_queries: int = 100,
        dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        num_layers: int = 1,
        dropout: float = 0.1,
        auxiliary_loss: bool = True,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
        over_ranks: bool = True,
        matching: str = BIPARTITE,
    ) -> None:
        super().__init__(backbone, num_classes, pixel_mean, pixel_std, size_divisibility)
        require_each(between(1, MOST), feedforward_dim=feedforward_dim)
        require_each(between(num_classes if matching == FIXED else 1, MOST), num_queries=num_queries)
        require_each(between(1, 100), num_layers=num_layers, num_heads=num_heads)
        require_each(between(_GROUPS, 64 * _GROUPS), dim=dim)
        if dim % _GROUPS:
            raise InputError(f"dim is {dim}; allowed is a multiple of {_GROUPS}, the groups of the norm")
        require_each(between(0, 1), dropout=dropout)
        weights = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        require_each(between(0, MOST), **weights, no_object_weight=no_object_weight)
        self.ignore = ignore
        self.auxiliary_loss = auxiliary_loss
        self.pixel_decoder = PixelDecoder(backbone.channels["path1"], dim, _GROUPS)
        self.transformer_decoder = TransformerDecoder(
            backbone.channels["path3"], num_queries, dim, num_heads, feedforward_dim, num_layers, dropout
        )
        self.segmentation = SegmentationModule(num_classes, dim, dim)
        self.loss = MaskFormerLoss(
            num_classes, class_weight, mask_weight, dice_weight, no_object_weight, over_ranks, matching
        )

    def head(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> list[SegmentPrediction]:
        """Predict by each decoder layer from ``path1`` and ``path3``; ``valid`` as `TransformerDecoder` takes it."""
        pixels = self.pixel_decoder(features["path1"])
        return [
            SegmentPrediction(*self.segmentation(queries, pixels))
            for queries in self.transformer_decoder(features["path3"], valid)
        ]

    def head_losses(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``loss_class``, ``loss_mask``, ``loss_dice`` and those of auxiliary predictions."""
        predictions = self._segments(features, image_sizes(batch), padded)
        if not self.auxiliary_loss:
            predictions = predictions[-1:]
        labelled = [i for i, sample in enumerate(batch) if "sem_seg" in sample]
        targets = [self.targets(batch[i], padded) for i in labelled]
        predictions = [
            SegmentPrediction(chosen(p.class_logits, labelled), chosen(p.mask_logits, labelled))
            for p in predictions
        ]
        return self.loss(predictions, targets)

    def head_predict(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        scored = zip(batch, self._scores(features, batch, padded), strict=True)
        return [{"sem_seg": label_map(scores, label_size(sample))} for sample, scores in scored]

    def pixel_scores(self, batch: Sequence[Sample]) -> Iterator[Tensor]:
        """K x H x W scores of each sample, whose padded sizes are equal (`segment_scores`); one is held at a time."""
        images, _ = self.images(batch)
        return self._scores(self.backbone(images), batch, image_size(images))

    def _scores(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample], padded: tuple[int, int]
    ) -> Iterator[Tensor]:
        sizes = image_sizes(batch)
        prediction = self._segments(features, sizes, padded)[-1]
        for classes, masks, size in zip(prediction.class_logits, prediction.mask_logits, sizes, strict=True):
            yield segment_scores(classes, masks, padded, size)

    def _segments(
        self, features: Mapping[str, Tensor], sizes: Sizes, padded: tuple[int, int]
    ) -> list[SegmentPrediction]:
        feature = features["path3"]
        return self.head(features, valid_features(sizes, padded, image_size(feature), feature.device))

    def evaluator(self, info: DatasetInfo) -> SemSegMetrics:
        return SemSegMetrics(info.sem_seg_names, info.sem_seg_ignore)

    def targets(self, sample: Sample, padded: tuple[int, int]) -> Segments:
        """Return the segments of a sample, where its label map is, which is padded with ``ignore``.

        Raises:
            ValueError: a label out of range, or a label map that is not as large as its image.
        """
        sem_seg = torch.as_tensor(sample["sem_seg"]).to(torch.int64)
        height, width = sample["image"].shape[-2:]
        if sem_seg.shape != (height, width):
            raise InputError(
                f"image {sample.get('image_id')}: sem_seg is {tuple(sem_seg.shape)}; expected {(height, width)}, "
                "as the image"
            )
        require_labels(sem_seg[sem_seg != self.ignore], self.num_classes, "sem_seg", sample)
        padding = (0, padded[1] - width, 0, padded[0] - height)
        return segments_of(F.pad(sem_seg, padding, value=self.ignore), self.ignore)


def valid_features(
    sizes: Sizes, padded: tuple[int, int], feature_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return N x h x w booleans: the features that an image of (height, width) covers of those of its padded size."""
    valid = torch.zeros(len(sizes), *feature_size, dtype=torch.bool, device=device)
    for mask, size in zip(valid, sizes, strict=True):
        rows, columns = (-(-n * f // p) for n, f, p in zip(size, feature_size, padded, strict=True))
        mask[: max(1, rows), : max(1, columns)] = True
    return valid


def segment_scores(
    class_logits: Tensor, mask_logits: Tensor, padded: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """MaskFormer's semantic inference, at the image's own size.

    Args:
        class_logits: Q x (K + 1), "no object" last.
        mask_logits: Q x h x w, of the padded image.
        padded, size: (height, width) of the padded and of the image itself.

    Returns:
        K x H x W: per pixel and class, the sum over queries of class probability (softmax) times mask probability
        (sigmoid). They do not sum to one: where no query sees an object all are near 0, and queries that agree
        may add up to more than 1.
    """
    return weighed_masks(class_logits.float().softmax(1)[:, :-1], mask_logits, padded, size)


def weighed_masks(
    classes: Tensor, mask_logits: Tensor, padded: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """`segment_scores` of Q x K class probabilities, that of "no object" left out."""
    masks = F.interpolate(mask_logits[None].float(), padded, mode="bilinear", align_corners=False)[0]
    masks = masks[:, : size[0], : size[1]].sigmoid()
    return torch.einsum("qk,qhw->khw", classes, masks)
