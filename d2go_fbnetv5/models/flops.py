"""FLOPs of a model by its parts, as in Tables 2, 6 and 7, and the average of Appendix H.

One multiply-add is one FLOP; convolutions, linear layers and matrix products (of attention and of masks) count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import PATHS
from d2go_fbnetv5.arch.cost import count_flops, count_params
from d2go_fbnetv5.models.base import SearchedModel
from d2go_fbnetv5.models.image_classifier import ImageClassifier
from d2go_fbnetv5.models.lite_depth import LiteDepth
from d2go_fbnetv5.models.lite_maskformer import LiteMaskFormer
from d2go_fbnetv5.models.lite_rcnn import LiteRCNN
from d2go_fbnetv5.models.several_heads import SeveralHeads
from d2go_fbnetv5.models.transformer_decoder import TransformerDecoder
from d2go_fbnetv5.utils.errors import InputError


@dataclass(frozen=True)
class ModelFlops:
    """The cost of one image.

    Attributes:
        size: height and width of the image before padding.
        parts: multiply-adds by part: BB (backbone) and head; or RPN and ROI (of 30 proposals); or PD (pixel
            decoder), TD (transformer decoder) and SM (segmentation module). Of several heads each has its task before
            it, "det RPN".
        fixed: names of the parts that cost the same at any image size.
        constant: multiply-adds of what the first decoder layer computes from weights alone. They are the same
            for every image, an exporter folds them, and Table 6 leaves them out: neither part nor total has them.
        parameters: trainable values of the whole model.
    """

    size: tuple[int, int]
    parts: dict[str, int]
    parameters: int
    fixed: frozenset[str] = frozenset()
    constant: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def model_flops(model: SearchedModel, size: tuple[int, int]) -> ModelFlops:
    """Counts a model at an image of ``size`` (height, width), padded as the model pads it.

    Nothing is computed: the count runs on the meta device. The model is left as it is.

    Raises:
        ValueError: a side is not positive, or the model is of a class that no table has.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size {tuple(size)}: allowed are a height and a width of 1 pixel or more")
    _counter(model)
    parameters = count_params(model)
    meta = _without_uncounted(copy.deepcopy(model).to("meta").eval().requires_grad_(False))
    padded, backbone = model.padded_size(size), meta.backbone
    images = torch.empty(1, 3, *padded, device="meta")
    feature_sizes = dict(zip(PATHS, backbone.family.feature_sizes(padded), strict=True))
    features = {
        name: torch.empty(1, channels, *feature_sizes[name], device="meta")
        for name, channels in backbone.channels.items()
    }
    parts, constant = _counter(meta)(meta, features)
    return ModelFlops(
        size=(int(size[0]), int(size[1])),
        parts={"BB": count_flops(backbone, images), **parts},
        parameters=parameters,
        fixed=frozenset(name for name in parts if name.endswith("ROI")),
        constant=constant,
    )


_UNCOUNTED = (nn.BatchNorm2d, nn.Hardswish, nn.Hardsigmoid)


def _without_uncounted(model: SearchedModel) -> SearchedModel:
    """Drops layers that keep the shape and cost nothing here, which the meta device is very slow at."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _UNCOUNTED):
                setattr(module, name, nn.Identity())
    return model


def average_flops(
    reference: ModelFlops, sizes: Iterable[tuple[int, int]], min_size: int = 224, max_size: int = 320
) -> float:
    """Return the mean multiply-adds over a data set whose images differ in size (Appendix H).

    Each image is resized as for inference (`resized`). What depends on its size then costs the reference's
    times the ratio of the areas, both without padding; the box head sees 30 proposals whatever the size.

    Args:
        reference: the model at the reference size, such as 213 x 320.
        sizes: (height, width) of every image of the data set, at least one.
        min_size: what the short side is resized to; 224 or 320 in the paper.
        max_size: the most that the long side may be; 320 or 640 in the paper.
    """
    areas = [height * width for height, width in (resized(size, min_size, max_size) for size in sizes)]
    if not areas:
        raise InputError("average_flops needs at least one image size, found none")
    fixed = sum(flops for name, flops in reference.parts.items() if name in reference.fixed)
    ratio = sum(areas) / len(areas) / (reference.size[0] * reference.size[1])
    return fixed + (reference.total - fixed) * ratio


def resized(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the short side at ``min_size``, or less where the long one would pass ``max_size``."""
    scale = min(min_size / min(size), max_size / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _counter(model: SearchedModel) -> Callable[..., tuple[dict[str, int], int]]:
    for kind, count in _COUNTERS.items():
        if isinstance(model, kind):
            return count
    allowed = ", ".join(kind.__name__ for kind in _COUNTERS)
    raise InputError(f"cannot count a {type(model).__name__}; allowed are {allowed}")


def _several_parts(model: SeveralHeads, features: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    counted = {task: _counter(head)(head, features) for task, head in model.singles().items()}
    parts = {f"{task} {name}": flops for task, (each, _) in counted.items() for name, flops in each.items()}
    return parts, sum(constant for _, constant in counted.values())


def _classifier_parts(model: ImageClassifier, features: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    return {"head": count_flops(model.head, features["path3"])}, 0


def _rcnn_parts(model: LiteRCNN, features: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    roi, feature = model.roi_head, features["path1"]
    regions = feature.new_empty(model.test_proposals, feature.shape[1], roi.resolution, roi.resolution)
    return {
        "RPN": count_flops(model.rpn.head, [feature]),
        "ROI": count_flops(nn.Sequential(roi.box_head, roi.predictor), regions),
    }, 0


def _depth_parts(model: LiteDepth, features: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    paths = [features[name] for name in model.in_features]
    return {"head": count_flops(model.decoder, *paths)}, 0


def _maskformer_parts(model: LiteMaskFormer, features: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    decoder = model.transformer_decoder
    constant = query_flops(decoder)
    with torch.no_grad():
        pixels, queries = model.pixel_decoder(features["path1"]), decoder(features["path3"])[-1]
    return {
        "PD": count_flops(model.pixel_decoder, features["path1"]),
        "TD": count_flops(decoder, features["path3"]) - constant,
        "SM": count_flops(model.segmentation, queries, pixels),
    }, constant


def query_flops(decoder: TransformerDecoder) -> int:
    """Multiply-adds that the first layer spends on its learned queries before it looks at the image."""
    layer, queries = decoder.layers[0], decoder.queries.weight[None]
    attention, query = layer.get_submodule("self_attention"), layer.get_submodule("cross_attention.query")
    return count_flops(attention, queries, queries, queries) + count_flops(query, queries)


_COUNTERS: dict[type, Callable[..., tuple[dict[str, int], int]]] = {
    ImageClassifier: _classifier_parts,
    LiteRCNN: _rcnn_parts,
    LiteDepth: _depth_parts,
    LiteMaskFormer: _maskformer_parts,
    SeveralHeads: _several_parts,
}
