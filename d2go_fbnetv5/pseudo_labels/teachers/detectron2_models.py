"""Teacher "detectron2": any model that Detectron2 builds of a configuration, also those of projects on it.

CenterNet2 and MaskFormer are such projects: ``imports`` names the modules that register their parts, ``config_hook``
the function that adds their keys. Detectron2 itself is not on PyPI; it is imported when a teacher is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from d2go_fbnetv5.pseudo_labels.teacher import Teacher, load_module, register_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import ClassList, bounded, name_list
from d2go_fbnetv5.pseudo_labels.teachers.detectron2_config import detectron2_configuration
from d2go_fbnetv5.pseudo_labels.teachers.detectron2_weights import load_all_weights
from d2go_fbnetv5.tasks.images import run_in_groups
from d2go_fbnetv5.utils.errors import InputError

_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda scores: scores.softmax(0),
    "probabilities": lambda scores: scores,
    "sums": bounded,
}
# What ``sem_seg`` is of a meta-architecture whose name ends so.
_KNOWN_SCORES = {"SemanticSegmentor": "logits", "PanopticFPN": "logits", "MaskFormer": "sums"}
_NAMES = {"instances": "box_names", "sem_seg": "sem_seg_names"}
_METADATA = {"instances": "thing_classes", "sem_seg": "stuff_classes"}
_PROBED = 64  # pixels; the side of the grey image that a model is tried with


@register_teacher("detectron2")
def detectron2_teacher(
    device: torch.device,
    config: str,
    weights: str | None = None,
    imports: Sequence[str] = (),
    config_hook: str | Sequence[str] = (),
    opts: Sequence[Any] = (),
    box_names: Sequence[str] | None = None,
    sem_seg_names: Sequence[str] | None = None,
    sem_seg_scores: str | None = None,
) -> Teacher:
    """Label by a model of Detectron2.

    Args:
        config: a YAML file, or a name of Detectron2's model zoo, such as
            "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml".
        weights: a .pth or .pkl file or address, in place of the configuration's MODEL.WEIGHTS (the zoo's own, for a
            name of the zoo). Every weight of the model must be in it.
        imports: modules to import first.
        config_hook: ``module:function`` or several, called with the configuration before the file is read, such as
            "mask_former:add_mask_former_config".
        opts: KEY, VALUE, ... over the file's.
        box_names, sem_seg_names: of the classes, in place of the metadata of the configuration's DATASETS.TEST; []
            where boxes or maps are not wanted. "N/A" leaves a class out.
        sem_seg_scores: what the model's ``sem_seg`` is: "logits", "probabilities", or "sums" as MaskFormer's, which
            may exceed 1. By default what its meta-architecture is known for.

    Raises:
        ValueError: Detectron2 is missing, or names the option, key or weight that is wrong.
        FileNotFoundError: no such file.
    """
    what = f"Detectron2 model {config!r}"
    try:
        from detectron2.modeling import build_model
    except ImportError as error:
        raise InputError(
            f"{what} needs Detectron2, which is not on PyPI: install it from its repository ({error})"
        ) from error
    if sem_seg_scores not in (None, *_SCORES):
        raise InputError(f"{what}: sem_seg_scores is {sem_seg_scores!r}, allowed are {', '.join(_SCORES)}")
    for module in imports:
        load_module(module, f"{what}: imports")
    hooks = [config_hook] if isinstance(config_hook, str) else config_hook
    cfg = detectron2_configuration(what, config, hooks, [*opts, "MODEL.DEVICE", str(device)])
    if weights is not None:
        cfg.MODEL.WEIGHTS = weights
    if not cfg.MODEL.WEIGHTS:
        raise InputError(f"{what}: neither weights nor its MODEL.WEIGHTS name a file")
    cfg.freeze()
    try:
        model = build_model(cfg)
    except KeyError as error:
        raise InputError(f"{what}: {error}; imports must name the module that registers it") from error
    load_all_weights(model, cfg.MODEL.WEIGHTS, what)
    model = model.eval().requires_grad_(False)
    return _Detectron2Model(
        what, model, cfg, {"instances": box_names, "sem_seg": sem_seg_names}, sem_seg_scores
    )


class _Detectron2Model(Teacher):
    def __init__(
        self,
        what: str,
        model: nn.Module,
        cfg: Any,
        names: dict[str, Sequence[str] | None],
        sem_seg_scores: str | None,
    ) -> None:
        from detectron2.data import transforms

        self.model, self.bgr = model, cfg.INPUT.FORMAT == "BGR"
        side = cfg.INPUT.MIN_SIZE_TEST
        self.resize = transforms.ResizeShortestEdge([side, side], cfg.INPUT.MAX_SIZE_TEST)
        with torch.no_grad():
            (given,) = self._run([torch.full((3, _PROBED, _PROBED), 128, dtype=torch.uint8)])
        self.classes = {}
        for output, wanted in names.items():
            if output in given and (wanted is None or len(wanted)):
                entries = (
                    _metadata_names(what, cfg, output)
                    if wanted is None
                    else name_list(_NAMES[output], wanted)
                )
                self.classes[output] = ClassList(entries)
                setattr(self, _NAMES[output], self.classes[output].names)
                _check_count(what, _NAMES[output], len(entries), _count(model, given, output))
        if not self.classes:
            raise InputError(f"{what} gives {', '.join(given)}, of which nothing is wanted")
        if "sem_seg" in self.classes:
            kind = cfg.MODEL.META_ARCHITECTURE
            scores = sem_seg_scores or next((v for k, v in _KNOWN_SCORES.items() if kind.endswith(k)), None)
            if scores is None:
                raise InputError(f"{what}: sem_seg_scores must say what {kind} gives: {', '.join(_SCORES)}")
            self.activation = _SCORES[scores]

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._read(output) for output in self._run(images)]

    def _run(self, images: list[Tensor]) -> list[dict[str, Any]]:
        """The model's own outputs; images of one size are run together, so none is padded for another's sake."""
        prepared = [self._prepare(image) for image in images]
        keys = [entry["image"].shape for entry in prepared]
        return run_in_groups(keys, lambda indices: self.model([prepared[i] for i in indices]))

    def _prepare(self, image: Tensor) -> dict[str, Any]:
        height, width = image.shape[-2:]
        pixels = (image.flip(0) if self.bgr else image).permute(1, 2, 0).contiguous().numpy()
        resized = self.resize.get_transform(pixels).apply_image(pixels)
        return {"image": torch.tensor(resized).permute(2, 0, 1).float(), "height": height, "width": width}

    def _read(self, output: dict[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "instances" in self.classes:
            instances = output["instances"]
            boxes = instances.pred_boxes.tensor
            if instances.has("pred_masks") and not boxes.any():
                boxes = _boxes_of(
                    instances.pred_masks
                )  # MaskFormer and its like leave them to who wants them
            found |= self.classes["instances"].boxes(boxes, instances.scores, instances.pred_classes)
        if "sem_seg" in self.classes:
            scores = self.activation(output["sem_seg"].float())
            found["probabilities"] = self.classes["sem_seg"].scores(scores)
        return found


def _boxes_of(masks: Tensor) -> Tensor:
    """M x H x W masks -> M x 4 XYXY pixels, edges included; no mask, no area."""
    masks = masks > 0
    boxes = masks.new_zeros((len(masks), 4), dtype=torch.float32)
    present = masks.flatten(1).any(1)
    boxes[present] = masks_to_boxes(masks[present]) + boxes.new_tensor([0, 0, 1, 1])
    return boxes


def _metadata_names(what: str, cfg: Any, output: str) -> list[str]:
    from detectron2.data import MetadataCatalog

    field = _METADATA[output]
    for dataset in cfg.DATASETS.TEST[:1]:
        names = MetadataCatalog.get(dataset).get(field)
        if names:
            return list(names)
    raise InputError(
        f"{what}: {_NAMES[output]} must be given, for DATASETS.TEST {tuple(cfg.DATASETS.TEST)} has no {field}"
    )


def _count(model: nn.Module, given: dict[str, Any], output: str) -> int | None:
    """Return how many classes the model has, where that can be told."""
    if output == "sem_seg":
        return len(given["sem_seg"])
    return getattr(getattr(model, "roi_heads", model), "num_classes", None)


def _check_count(what: str, option: str, names: int, classes: int | None) -> None:
    if classes is not None and names != classes:
        raise InputError(f"{what}: {names} {option}, the model has {classes} classes")
