"""Models in a form that torch can trace and script: one image in, tensors out, batch norm folded.

`torch.jit.script` and Detectron2's `scripting_with_instances` find these by ``__prepare_scriptable__``. Detectron2's
modules that hold one of our backbones then have its scriptable form in its place, which computes the same under other
names of weights: script a copy of what is still to be trained.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone as DetectronBackbone
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.network.fold import folded
from d2go_fbnetv5.export.network.inference import AnyDetector
from d2go_fbnetv5.models import ImageClassifier, LiteDepth, LiteMaskFormer, LiteRCNN, SearchedModel


@torch.jit.script_if_tracing
def pad_image(image: Tensor, divisor: int, least: int) -> Tensor:
    """1 x 3 x H x W -> padded with zeros, right and bottom, as `SearchedModel.images` does, at any size."""
    height, width = image.shape[2], image.shape[3]
    target_height = max((height + divisor - 1) // divisor * divisor, least)
    target_width = max((width + divisor - 1) // divisor * divisor, least)
    return F.pad(image, [0, target_width - width, 0, target_height - height])


@torch.jit.script_if_tracing
def valid_mask(image: Tensor, padded: Tensor, feature: Tensor) -> Tensor:
    """1 x h x w booleans: `valid_features` of one image, at any size."""
    rows = (image.shape[2] * feature.shape[2] + padded.shape[2] - 1) // padded.shape[2]
    columns = (image.shape[3] * feature.shape[3] + padded.shape[3] - 1) // padded.shape[3]
    y = torch.arange(feature.shape[2], device=feature.device) < max(rows, 1)
    x = torch.arange(feature.shape[3], device=feature.device) < max(columns, 1)
    return (y[:, None] & x[None, :])[None]


@torch.jit.script_if_tracing
def mask_scores(class_logits: Tensor, mask_logits: Tensor, image: Tensor, padded: Tensor) -> Tensor:
    """`segment_scores` of one image, cut to its size: K x H x W."""
    size = [padded.shape[2], padded.shape[3]]
    masks = F.interpolate(mask_logits.float(), size, mode="bilinear", align_corners=False)[0].sigmoid()
    classes = class_logits[0].float().softmax(1)[:, :-1]
    return torch.einsum("qk,qhw->khw", classes, masks)[:, : image.shape[2], : image.shape[3]]


@torch.jit.script_if_tracing
def depths(logs: Tensor, image: Tensor, padded: Tensor) -> Tensor:
    """1 x 1 x h x w logarithms of an image's depth -> H x W depths of its own size."""
    size = [padded.shape[2], padded.shape[3]]
    logs = F.interpolate(logs.float(), size, mode="bilinear", align_corners=False)[0, 0]
    return logs[: image.shape[2], : image.shape[3]].exp()


@torch.jit.script_if_tracing
def enlarge(feature: Tensor, image: Tensor, stride: int) -> Tensor:
    """N x C x h x w -> of the image's size over ``stride``, rounded up: the last row and column are repeated."""
    height = (image.shape[2] + stride - 1) // stride - feature.shape[2]
    width = (image.shape[3] + stride - 1) // stride - feature.shape[3]
    if height == 0 and width == 0:
        return feature
    return F.pad(feature, [0, width, 0, height], mode="replicate")


class ScriptableBackbone(DetectronBackbone):
    """A searched network that gives its features by name; `FBNetV5Backbone` gives the same."""

    def __init__(self, backbone: Backbone, exact_sizes: bool = False) -> None:
        super().__init__()
        self.features = FlatBackbone(backbone, any_size=True)
        self.names = list(backbone.outputs)
        self.strides = [backbone.strides[name] for name in backbone.outputs]
        self.exact_sizes = exact_sizes

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for i, feature in enumerate(self.features(images)):
            if self.exact_sizes:
                feature = enlarge(feature, images, self.strides[i])
            features[self.names[i]] = feature
        return features


class _ClassifierHead(nn.Module):
    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, features: dict[str, Tensor], images: Tensor, padded: Tensor) -> list[Tensor]:
        return [self.head(features["path3"]).float().softmax(1)[0]]


class _SegmenterHead(nn.Module):
    def __init__(self, model: LiteMaskFormer) -> None:
        super().__init__()
        self.pixel_decoder = model.pixel_decoder
        self.transformer_decoder = model.transformer_decoder
        self.segmentation = model.segmentation

    def forward(self, features: dict[str, Tensor], images: Tensor, padded: Tensor) -> list[Tensor]:
        queries = self.transformer_decoder(features["path3"], valid_mask(images, padded, features["path3"]))[
            -1
        ]
        class_logits, mask_logits = self.segmentation(queries, self.pixel_decoder(features["path1"]))
        return [mask_scores(class_logits, mask_logits, images, padded)]


class _DepthHead(nn.Module):
    def __init__(self, model: LiteDepth) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, features: dict[str, Tensor], images: Tensor, padded: Tensor) -> list[Tensor]:
        logs = self.decoder(features["path1"], features["path2"], features["path3"])
        return [depths(logs, images, padded)]


class _DetectorHead(AnyDetector):
    def __init__(self, model: LiteRCNN) -> None:
        super().__init__(model, model.rpn.head)

    def forward(self, features: dict[str, Tensor], images: Tensor, padded: Tensor) -> list[Tensor]:
        feature = features["path1"].float()
        objectness, deltas = self.proposals([feature])
        size = images.shape[2], images.shape[3]
        boxes, scores, labels = self.detections(feature, objectness[0], deltas[0], size)
        found = scores > 0
        return [boxes[found], scores[found], labels[found]]


_HEADS: dict[type[SearchedModel], Callable[[Any], nn.Module]] = {
    ImageClassifier: _ClassifierHead,
    LiteDepth: _DepthHead,
    LiteMaskFormer: _SegmenterHead,
    LiteRCNN: _DetectorHead,
}


class _OnImage(nn.Module):
    """Normalises and pads one image for a model that is left as it is."""

    def __init__(self, model: SearchedModel) -> None:
        super().__init__()
        model = folded(model)
        self.register_buffer("mean", model.pixel_mean.view(3, 1, 1).clone())
        self.register_buffer("std", model.pixel_std.view(3, 1, 1).clone())
        self.backbone = model.backbone
        self.divisor, (self.least, _) = model.size_divisibility, model.padded_size((1, 1))
        self.heads = nn.ModuleList(
            head(single)
            for single in model.singles().values()
            for kind, head in _HEADS.items()
            if isinstance(single, kind)
        )

    def scriptable(self) -> nn.Module:
        """Make the backbone, which tracing takes as it is, one for scripting, too."""
        self.backbone = ScriptableBackbone(self.backbone)
        return self

    def outputs(self, image: Tensor) -> list[Tensor]:
        images = ((image.float() - self.mean) / self.std)[None]
        padded = pad_image(images, self.divisor, self.least)
        features = self.backbone(padded)
        found: list[Tensor] = []
        for head in self.heads:
            found += head(features, images, padded)
        return found


class ClassifierOnImage(_OnImage):
    """3 x H x W in 0..255, any size -> K class probabilities."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image)[0]


class SegmenterOnImage(_OnImage):
    """3 x H x W in 0..255, any size -> K x H x W scores."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image)[0]


class DepthOnImage(_OnImage):
    """3 x H x W in 0..255, any size -> H x W depths."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image)[0]


class SeveralOnImage(_OnImage):
    """3 x H x W in 0..255, any size -> what the heads give, one after another; a detector M x 4 boxes in the image's
    pixels, M scores, best first, and M classes. To be scripted: its sizes are no constants then."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.outputs(image)


class OnDicts(nn.Module):
    """Detectron2's dicts, each with an ``image`` -> dicts of what ``model`` gives for it, under ``key``; as of
    Detectron2's scripted detectors they are of the image's own size."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, batch: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        return [{self.key: self.model(data["image"])} for data in batch]


class ScriptableRCNN(GeneralizedRCNN):
    """Detectron2's detector alone, of the modules of one of ours."""

    training: torch.jit.Final[bool]

    @classmethod
    def of(cls, model: GeneralizedRCNN) -> "ScriptableRCNN":
        """Return a detector that shares the parts of ``model`` and may exchange them."""
        detector = copy.copy(model)
        detector.__class__ = cls
        detector._modules = dict(model._modules)
        return detector
