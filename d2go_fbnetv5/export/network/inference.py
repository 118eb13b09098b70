"""Each task's model, and several heads, as exported: one image in, tensors of fixed size out, batch norm folded.

The image is 1 x 3 x H x W float, RGB, 0..255; normalising it is part of the module. H and W are multiples of
32. Resizing, padding, names and drawing are the application's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from d2go_fbnetv5.export.image_sizes import STEP
from d2go_fbnetv5.export.network.boxes import detect, propose
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.network.fold import folded
from d2go_fbnetv5.models import (
    ImageClassifier,
    LiteDepth,
    LiteMaskFormer,
    LiteRCNN,
    SearchedModel,
    SeveralHeads,
    TransformerDecoder,
)
from d2go_fbnetv5.utils.errors import InputError


class _Backbone(nn.Module):
    """1 x 3 x H x W image in 0..255 -> the features that the head reads. ``model`` is folded.

    With ``any_size`` an image that is smaller than the model's smallest is padded to it, as the model does; without it
    such an image, and one whose sides are no multiples of 32, is an error where Python or TorchScript runs this. (What
    `torch.export` makes of it has no such check.)
    """

    def __init__(self, model: SearchedModel, any_size: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", model.pixel_mean.view(1, 3, 1, 1).clone())
        self.register_buffer("scale", 1 / model.pixel_std.view(1, 3, 1, 1))
        self.features = FlatBackbone(model.backbone, any_size)
        self.any_size = any_size
        self.least = model.padded_size((1, 1))[0]
        self.step = STEP

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[2], image.shape[3]
        small = height < self.least or width < self.least
        if not self.any_size and (small or height % self.step != 0 or width % self.step != 0):
            raise ValueError(
                f"an image of {height}x{width} pixels; allowed are sides of {self.least} or more, multiples of "
                f"{self.step}"
            )
        image = (image - self.mean) * self.scale
        if small:
            image = F.pad(image, [0, max(0, self.least - width), 0, max(0, self.least - height)])
        return self.features(image)


class _Head(nn.Module):
    """The part of a model that makes a list of outputs of its backbone's features. ``model`` is folded.

    Args:
        names: of all the features that there are, of which it reads some.
    """

    def __init__(self, model: SearchedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.places = [names.index(name) for name in model.in_features]

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        raise NotImplementedError


class _Classifier(_Head):
    def __init__(self, model: ImageClassifier, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.pool, self.fc = model.head.pool, model.head.fc

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        return [self.fc(self.pool(features[self.places[0]]).flatten(1)).softmax(1)]


class _Segmenter(_Head):
    def __init__(self, model: LiteMaskFormer, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.pixel_decoder = model.pixel_decoder
        self.decoder = _Decoder(model.transformer_decoder)
        self.segmentation = model.segmentation

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        pixels = self.pixel_decoder(features[self.places[0]])
        queries = self.decoder(features[self.places[1]])
        masks = self.segmentation.mask_embedding(queries) @ pixels.flatten(2)
        classes = self.segmentation.classes(queries).softmax(2)[:, :, :-1]
        return [classes, masks.view(1, masks.shape[1], pixels.shape[2], pixels.shape[3])]


class _Depth(_Head):
    def __init__(self, model: LiteDepth, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.decoder = model.decoder

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        path1, path2, path3 = [features[i] for i in self.places]
        logs = self.decoder(path1, path2, path3)
        return [F.interpolate(logs, size=[height, width], mode="bilinear", align_corners=False).exp()]


class _Proposals(_Head):
    def __init__(self, model: LiteRCNN, names: Sequence[str]) -> None:
        super().__init__(model, names)
        head = model.rpn.head
        self.blocks, self.objectness, self.deltas = head.blocks, head.objectness, head.deltas

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        feature = features[self.places[0]]
        hidden = self.blocks(feature)
        return [feature, self.objectness(hidden), self.deltas(hidden)]


_HEADS: dict[type[SearchedModel], type[_Head]] = {
    ImageClassifier: _Classifier,
    LiteMaskFormer: _Segmenter,
    LiteRCNN: _Proposals,
    LiteDepth: _Depth,
}


class _Inference(nn.Module):
    """1 x 3 x H x W image -> the outputs of a model's heads, one after another, a detector's first."""

    def __init__(self, model: SearchedModel, any_size: bool = False) -> None:
        super().__init__()
        model = folded(model)
        self.any_size = any_size
        self.backbone = _Backbone(model, any_size)
        names = self.backbone.features.outputs
        self.heads = nn.ModuleList(
            head(single, names)
            for single in in_file(model)
            for kind, head in _HEADS.items()
            if isinstance(single, kind)
        )

    def outputs(self, image: Tensor) -> list[Tensor]:
        features = self.backbone(image)
        found: list[Tensor] = []
        for head in self.heads:
            found += head(features, image.shape[2], image.shape[3])
        return found


class ClassifierInference(_Inference):
    """1 x 3 x H x W image -> 1 x K class probabilities; H and W are multiples of 32 unless ``any_size``."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image)[0]


class SegmenterInference(_Inference):
    """1 x 3 x H x W image -> 1 x Q x K class probabilities, "no object" left out, and 1 x Q x H/8 x W/8 mask logits.

    Enlarging the masks and weighing the classes is the application's (`weighed_masks`): at the image's size it costs
    many times the whole network. Weighed first and enlarged afterwards, thin objects are lost.
    """

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.outputs(image)
        return found[0], found[1]


class DepthInference(_Inference):
    """1 x 3 x H x W image -> its depth, 1 x 1 x H x W, positive."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image)[0]


class SeveralInference(_Inference):
    """1 x 3 x H x W image -> what each head gives, in the order of `in_file`; of a detector what `DetectorProposals`
    does."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.outputs(image)


class _Decoder(nn.Module):
    """`TransformerDecoder` on a whole image, with what it computes from its weights alone made a constant."""

    def __init__(self, decoder: TransformerDecoder) -> None:
        super().__init__()
        self.input_projection = decoder.input_projection
        self.input_norm = decoder.input_norm
        self.layers = decoder.layers
        self.norm = decoder.norm
        queries = decoder.queries.weight[None]
        first = decoder.layers[0]
        pairs = queries.shape[2] // 4
        with torch.no_grad():
            self.register_buffer("queries", queries.clone())
            self.register_buffer("attended", first.attend_queries(torch.zeros_like(queries), queries))
            self.register_buffer("frequency", 10000.0 ** (torch.arange(pairs, dtype=torch.float32) / pairs))

    def forward(self, feature: Tensor) -> Tensor:
        projected = self.input_projection(feature)
        memory = self.input_norm(projected.flatten(2).transpose(1, 2))
        keys = memory + self.positions(feature.shape[2], feature.shape[3])
        x = self.attended
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = layer.attend_queries(x, self.queries)
            y = layer.cross_attention(x + self.queries, keys, memory)
            x = layer.norms[1](x + y)
            x = layer.norms[2](x + layer.project(layer.expand(x).relu()))
        return self.norm(x)

    def positions(self, height: int, width: int) -> Tensor:
        """`sine_positions` of an image without padding: 1 x (height * width) x D."""
        y = self._waves(height)[:, None, :].expand(height, width, -1)
        x = self._waves(width)[None, :, :].expand(height, width, -1)
        return torch.cat([y, x], dim=2).reshape(1, height * width, -1)

    def _waves(self, length: int) -> Tensor:
        count = torch.arange(length, dtype=torch.float32, device=self.frequency.device) + 1
        angle = (2 * math.pi * count / length)[:, None] / self.frequency
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class DetectorProposals(_Inference):
    """1 x 3 x H x W image -> Path 1's feature 1 x C x H/8 x W/8, objectness logits 1 x A x H/8 x W/8 and box deltas
    1 x 4A x H/8 x W/8 (of anchor a: channels 4a to 4a + 3, dx, dy, dw, dh)."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.outputs(image)
        return found[0], found[1], found[2]


class DetectorBoxes(nn.Module):
    """R x C x 6 x 6 features of regions -> R x K class probabilities (without the background's) and R x K x 4 box
    deltas."""

    def __init__(self, model: LiteRCNN) -> None:
        super().__init__()
        head = folded(model.roi_head)
        self.box_head = head.box_head
        self.classes, self.deltas = head.predictor.classes, head.predictor.deltas
        self.num_classes = model.num_classes

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.box_head(regions)
        scores = self.classes(hidden).softmax(1)[:, : self.num_classes]
        return scores, self.deltas(hidden).view(-1, self.num_classes, 4)


class AnyDetector(nn.Module):
    """A detector in the parts that a host runs.

    Args:
        proposals: the network before the boxes.

    Attributes:
        cell_anchors: A x 4 XYXY, of the first cell.
    """

    def __init__(self, model: LiteRCNN, proposals: nn.Module) -> None:
        super().__init__()
        rpn, head = model.rpn, model.roi_head
        self.proposals = proposals
        self.boxes = DetectorBoxes(model)
        self.register_buffer("cell_anchors", rpn.anchor_generator.cell_anchors[0].clone())
        self.stride = head.stride
        self.resolution = head.resolution
        self.proposals_before_nms = rpn._pre_nms_top_n["testing"]
        self.proposals_after_nms = rpn._post_nms_top_n["testing"]
        self.proposals_iou = rpn.nms_thresh
        self.score_threshold = head.score_threshold
        # In a file it is a value by this name, so that a check can lower it.
        self.register_buffer("least_score", torch.tensor(float(head.score_threshold)))
        self.iou = head.nms_threshold
        self.max_detections = head.max_detections

    def detections(
        self, feature: Tensor, objectness: Tensor, deltas: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels in an image of ``size`` by what `DetectorProposals` gives of it."""
        boxes, present = propose(
            objectness,
            deltas,
            self.cell_anchors,
            self.stride,
            size,
            self.proposals_before_nms,
            self.proposals_after_nms,
            self.proposals_iou,
        )
        regions = roi_align(feature, [boxes], self.resolution, 1 / self.stride, 0, aligned=True)
        scores, deltas = self.boxes(regions)
        return detect(scores, deltas, boxes, present, size, self.least_score, self.iou, self.max_detections)


class DetectorInference(AnyDetector):
    """1 x 3 x H x W image -> the best detections: M x 4 XYXY boxes in the image's pixels, M scores, best first, and M
    int64 labels. M is the model's ``max_detections``; where there are fewer, the rest has score 0 and label -1."""

    def __init__(self, model: LiteRCNN) -> None:
        super().__init__(model, DetectorProposals(model))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature, objectness, deltas = self.proposals(image)
        return self.detections(feature, objectness, deltas, (image.shape[2], image.shape[3]))


class DetectorAmongOthers(AnyDetector):
    """1 x 3 x H x W image -> the detections, and then what the other heads of a `SeveralInference` give."""

    def forward(self, image: Tensor) -> list[Tensor]:
        found = self.proposals(image)
        boxes, scores, labels = self.detections(
            found[0], found[1], found[2], (image.shape[2], image.shape[3])
        )
        return [boxes, scores, labels] + found[3:]  # noqa: RUF005 (TorchScript knows no *)


def in_file(model: SearchedModel) -> list[SearchedModel]:
    """Return the models of one task that a model does the work of, in the order of their outputs in a file: a detector
    first, as a host needs its three."""
    return sorted(model.singles().values(), key=lambda single: not isinstance(single, LiteRCNN))


def inference_module(model: SearchedModel, any_size: bool = False) -> nn.Module:
    """The whole model for export, in evaluation mode.

    Args:
        model: is left as it is.
        any_size: a classifier for images whose sides need not be multiples of 32.

    Raises:
        ValueError: a model of another class.
    """
    if isinstance(model, ImageClassifier):
        return ClassifierInference(model, any_size).eval()
    if isinstance(model, SeveralHeads):
        first, network = in_file(model)[0], SeveralInference(model).eval()
        return DetectorAmongOthers(first, network).eval() if isinstance(first, LiteRCNN) else network
    for kind, module in _MODULES.items():
        if isinstance(model, kind):
            return module(model).eval()
    allowed = ", ".join(kind.__name__ for kind in (ImageClassifier, *_MODULES, SeveralHeads))
    raise InputError(f"cannot export a {type(model).__name__}; allowed are {allowed}")


_MODULES = {
    LiteMaskFormer: SegmenterInference,
    LiteRCNN: DetectorInference,
    LiteDepth: DepthInference,
}
