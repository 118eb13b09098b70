"""Samples and Detectron2's dataset dicts are the same dicts; only boxes are kept in another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from d2go_fbnetv5.engine.loop import images_to_device
from d2go_fbnetv5.tasks.images import label_size

_LEAST_SIDE = 1e-2  # pixels; a thinner box has no finite regression target


def to_detectron2(sample: dict[str, Any], training: bool) -> dict[str, Any]:
    """Return the sample, with its ``boxes`` as ``instances`` too where it has them.

    They lie in a frame of ``height`` x ``width``, to which Detectron2 rescales predictions: in evaluation that of the
    original, in training the image's own, and then without crowds and boxes of no area.
    """
    height, width = sample["image"].shape[-2:] if training else label_size(sample)
    data = {**sample, "height": height, "width": width}
    if "boxes" in sample:
        boxes = torch.as_tensor(sample["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.as_tensor(sample["box_labels"], dtype=torch.int64).reshape(-1)
        if training:
            kept = (boxes[:, 2:] - boxes[:, :2] > _LEAST_SIDE).all(1)
            if "box_is_crowd" in sample:
                kept &= ~torch.as_tensor(sample["box_is_crowd"], dtype=torch.bool).reshape(-1)
            boxes, labels = boxes[kept], labels[kept]
        data["instances"] = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=labels)
    return data


def to_sample(data: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Turn a dict of Detectron2's loaders, or one of `to_detectron2`, into a sample whose image is on ``device``."""
    (sample,) = images_to_device([dict(data)], device)
    instances = sample.pop("instances", None)
    if instances is not None and "boxes" not in sample:
        sample["boxes"] = instances.gt_boxes.tensor
        sample["box_labels"] = instances.gt_classes
    if "sem_seg" in sample:
        sample["sem_seg"] = sample["sem_seg"].long()
    return sample


def to_output(output: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction in Detectron2's form as our evaluators read it: boxes in pixels of the ``image`` of ``data``, of
    which it was made, instead of ``height`` x ``width``."""
    converted = {key: value for key, value in output.items() if key != "instances"}
    if "instances" in output:
        instances = output["instances"]
        (height, width), (frame_height, frame_width) = data["image"].shape[-2:], instances.image_size
        boxes = instances.pred_boxes.tensor.double()  # there and back changes nothing then
        scale = [width / frame_width, height / frame_height] * 2
        converted["boxes"] = boxes * boxes.new_tensor(scale)
        converted["scores"] = instances.scores
        converted["labels"] = instances.pred_classes
    if "sem_seg" in output and output["sem_seg"].dim() == 3:
        converted["sem_seg"] = output["sem_seg"].argmax(0)  # K scores a pixel
    return converted


def to_instances(output: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The other way: a prediction of ours whose boxes, if any, are ``instances`` in ``height`` x ``width``."""
    converted = {key: value for key, value in output.items() if key not in ("boxes", "scores", "labels")}
    if "boxes" in output:
        (height, width), frame = data["image"].shape[-2:], label_size(data)
        boxes = output["boxes"] * output["boxes"].new_tensor([frame[1] / width, frame[0] / height] * 2)
        converted["instances"] = Instances(
            frame, pred_boxes=Boxes(boxes), scores=output["scores"], pred_classes=output["labels"]
        )
    return converted
