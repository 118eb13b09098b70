"""Lets D2Go's exporter save the classifier and Lite MaskFormer: image in, tensor out, traced."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from d2go.export.api import PredictorExportConfig
from mobile_cv.predictor.api import FuncInfo
from torch import Tensor, nn

from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer
from d2go_fbnetv5.utils.errors import InputError


class FirstImage:
    """Takes the exported model's input, the image of a batch of one, as floats in 0..255."""

    def __call__(self, batch: list[dict[str, Any]]) -> Tensor:
        if len(batch) != 1:
            raise InputError(f"a batch of {len(batch)} images, allowed for an exported model: 1")
        return batch[0]["image"].float()


class AsOutput:
    """A prediction as the eager model gives it, from the exported model's tensor."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, batch: Any, inputs: Any, outputs: Tensor) -> list[dict[str, Tensor]]:
        return [{self.key: outputs}]


def classifier_export(model: ImageClassifier) -> PredictorExportConfig:
    """3 x H x W -> K class probabilities."""
    return _export(_Classifier(model), "class_scores")


def segmentation_export(model: LiteMaskFormer) -> PredictorExportConfig:
    """3 x H x W -> K x H x W scores."""
    return _export(_Segmentor(model), "sem_seg")


def _export(model: nn.Module, key: str) -> PredictorExportConfig:
    return PredictorExportConfig(
        model=model.eval(),
        data_generator=lambda batch: (FirstImage()(batch),),
        preprocess_info=FuncInfo.gen_func_info(FirstImage, params={}),
        postprocess_info=FuncInfo.gen_func_info(AsOutput, params={"key": key}),
    )


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


class _Traced(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def normalized(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.model.pixel_mean, self.model.pixel_std
        images = ((image.float() - mean[:, None, None]) / std[:, None, None])[None]
        least, _ = self.model.padded_size((1, 1))
        return images, pad_image(images, self.model.size_divisibility, least)


class _Classifier(_Traced):
    def forward(self, image: Tensor) -> Tensor:
        return self.model.logits(self.normalized(image)[1]).softmax(1)[0]


class _Segmentor(_Traced):
    def forward(self, image: Tensor) -> Tensor:
        images, padded = self.normalized(image)
        features = self.model.backbone(padded)
        valid = valid_mask(images, padded, features["path3"])
        prediction = self.model.head(features, valid)[-1]
        return mask_scores(prediction.class_logits, prediction.mask_logits, images, padded)
