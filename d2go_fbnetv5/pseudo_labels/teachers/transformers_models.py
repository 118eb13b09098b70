"""Teacher "transformers": Hugging Face's detectors, semantic and universal segmenters, classifiers and models of depth.

Weights are read from safetensors only, and no code of a repository is run. Of the models whose segments are queries
(MaskFormer, Mask2Former, DETR) a pixel's scores are MaskFormer's semantic inference, the sum over queries of class
probability times mask probability, as for our own Lite MaskFormer (`searched_models`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.models.lite_maskformer import segment_scores
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, register_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import (
    ClassList,
    bounded,
    class_names,
    require_finite,
)
from d2go_fbnetv5.tasks.images import image_size, run_in_groups
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.rules import between, require_each

# What a checkpoint's architecture must be named for, and the class that loads it.
_LOADERS = {
    "ObjectDetection": "AutoModelForObjectDetection",
    "SemanticSegmentation": "AutoModelForSemanticSegmentation",
    "UniversalSegmentation": "AutoModelForUniversalSegmentation",
    "InstanceSegmentation": "AutoModelForUniversalSegmentation",  # MaskFormer's
    "Segmentation": "AutoModelForUniversalSegmentation",  # DETR's
    "ImageClassification": "AutoModelForImageClassification",
    "DepthEstimation": "AutoModelForDepthEstimation",
}
_INVERSE = ("depth_anything", "dpt")  # models that give the inverse of depth, up to scale and shift
_METRIC = (
    "depth_anything",
    "depth_pro",
    "glpn",
)  # that give metres; the first where its configuration says so


@register_teacher("transformers")
def transformers_teacher(
    device: torch.device,
    model: str,
    names: Sequence[str] | None = None,
    revision: str | None = None,
    processor: Mapping[str, Any] | None = None,
    depth_ratio: float = 10.0,
) -> Teacher:
    """Label by a model of Hugging Face transformers.

    Args:
        model: a folder that `save_pretrained` has left, or a name on the hub.
        names: of the classes, in place of the configuration's ``id2label``; "N/A" leaves one out.
        revision: of a model on the hub: a branch, tag or commit.
        depth_ratio: of a model that gives the inverse of depth up to scale and shift, how many times as far as the
            nearest of an image's pixels the farthest is taken to be, over 1: the shift, which this decides, is not
            known, so that such labels tell what is before what, and not by how much.
        processor: options of the image processor that differ from the model's, such as ``{size: {height: 512,
            width: 512}}``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: transformers is missing, the model does another thing than detect, segment, classify or see depth,
            or has another number of classes.
        OSError: the hub has no such model, or cannot be reached.
    """
    what = f"transformers model {model!r}"
    transformers = require_extra(what, "transformers", "transformers")
    where = Path(model).expanduser()
    if not where.is_dir() and (where.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"{what}: no such folder")
    source = os.fspath(where) if where.is_dir() else model
    options = {"revision": revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        ending = _ending(what, config)
        preprocess = transformers.AutoImageProcessor.from_pretrained(source, **options, **(processor or {}))
        loader = getattr(transformers, _LOADERS[ending])
        network, loaded = loader.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except OSError as error:
        raise OSError(f"{what}: {error}") from error
    except InputError:
        raise
    except Exception as error:  # of transformers, about the files, options, or packages that a model needs
        if "trust_remote_code" in str(error):  # which its message advises to set
            raise InputError(
                f"{what} is code of its repository, which is not run; allowed: others"
            ) from error
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
    missing = sorted(set(loaded["missing_keys"]) & dict(network.named_parameters()).keys())
    if missing:  # transformers would start them at random
        raise InputError(f"{what}: {len(missing)} weights are missing: {', '.join(missing[:3])}, ...")
    require_finite(network, what)
    network = network.eval().requires_grad_(False).to(device)
    if ending == "DepthEstimation":
        if names is not None:
            raise InputError(f"{what}: names are given, allowed for a model of depth: none")
        return _Depth(network, preprocess, _is_metric(what, config), depth_ratio)
    own = [config.id2label.get(k, f"class {k}") for k in range(config.num_labels)]
    classes = ClassList(class_names(names, own, what))
    kind = {"ObjectDetection": _Detector, "ImageClassification": _Classifier}.get(ending, _Segmenter)
    return kind(network, preprocess, classes)


def _ending(what: str, config: Any) -> str:
    """Return what the checkpoint's architecture is for."""
    architecture = (config.architectures or ["none"])[0]
    ending = architecture.rpartition("For")[2]
    if ending not in _LOADERS or config.model_type == "oneformer":  # OneFormer reads a text as well
        raise InputError(
            f"{what}: its architecture is {architecture}, allowed are those for {', '.join(_LOADERS)} that "
            "read images alone"
        )
    return ending


def _is_metric(what: str, config: Any) -> bool:
    """Return whether a model gives metres, or the inverse of depth up to scale and shift."""
    kind = config.model_type
    if kind in _METRIC and getattr(config, "depth_estimation_type", "metric") == "metric":
        return True
    if kind not in _INVERSE:
        raise InputError(
            f"{what}: what its depth is of is not known of a {kind}, allowed: "
            f"{', '.join(sorted({*_INVERSE, *_METRIC}))}"
        )
    return False


class _Model(Teacher):
    """An image is prepared alone, so that it is not padded for another's sake; those of one size are run together."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        # Labels are those of the whole image.
        self.options = {"do_center_crop": False} if getattr(processor, "do_center_crop", False) else {}

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        prepared = [self._prepare(image) for image in images]
        keys = [tuple((name, value.shape) for name, value in inputs.items()) for inputs in prepared]

        def run(indices: list[int]) -> list[dict[str, Tensor]]:
            inputs = {name: torch.cat([prepared[i][name] for i in indices]) for name in prepared[indices[0]]}
            inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
            return self.read(self.model(**inputs), inputs, [image_size(images[i]) for i in indices])

        return run_in_groups(keys, run)

    def _prepare(self, image: Tensor) -> dict[str, Tensor]:
        inputs = self.processor(
            images=[image], return_tensors="pt", input_data_format="channels_first", **self.options
        )
        found = {name: inputs[name] for name in ("pixel_values", "pixel_mask") if name in inputs}
        if len(found["pixel_values"]) != 1:
            raise InputError(
                "the image processor splits an image into several, which this teacher does not join"
            )
        return found

    def read(
        self, output: Any, inputs: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Read the model's output for N images of (height, width) ``sizes`` -> the contract's."""
        raise NotImplementedError


class _Detector(_Model):
    def __init__(self, model: Any, processor: Any, classes: ClassList) -> None:
        super().__init__(model, processor)
        self.classes, self.box_names = classes, classes.names

    def read(
        self, output: Any, inputs: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        found = self.processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        return [self.classes.boxes(each["boxes"], each["scores"], each["labels"]) for each in found]


class _Segmenter(_Model):
    def __init__(self, model: Any, processor: Any, classes: ClassList) -> None:
        super().__init__(model, processor)
        self.classes, self.sem_seg_names = classes, classes.names

    def read(
        self, output: Any, inputs: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        queries: Any = getattr(output, "class_queries_logits", None)
        masks: Any = getattr(output, "masks_queries_logits", None)
        if masks is None and getattr(output, "pred_masks", None) is not None:
            queries, masks = output.logits, output.pred_masks  # DETR's names
        if masks is None:
            return [
                {"probabilities": self.classes.scores(each)} for each in class_probabilities(output.logits)
            ]
        padded = image_size(inputs["pixel_values"])
        seen = [padded] * len(sizes)
        if "pixel_mask" in inputs:
            seen = [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in inputs["pixel_mask"]]
        return [
            {"probabilities": self.classes.scores(bounded(segment_scores(q, m, padded, size)))}
            for q, m, size in zip(queries, masks, seen, strict=True)
        ]


class _Classifier(_Model):
    def __init__(self, model: Any, processor: Any, classes: ClassList) -> None:
        super().__init__(model, processor)
        self.options = {}  # one label for the image: a classifier sees what it was trained to see
        self.classes, self.class_names = classes, classes.names

    def read(
        self, output: Any, inputs: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        several = self.model.config.problem_type == "multi_label_classification"
        scores = output.logits.float().sigmoid() if several else class_probabilities(output.logits)
        return [{"class_scores": self.classes.scores(each)} for each in scores]


class _Depth(_Model):
    def __init__(self, model: Any, processor: Any, is_metric: bool, ratio: float) -> None:
        super().__init__(model, processor)
        require_each(between(over=1, most=1e6), depth_ratio=ratio)
        self.is_metric, self.ratio = is_metric, ratio
        self.depth_units = ("metres",) if is_metric else ("relative",)

    def read(
        self, output: Any, inputs: dict[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        return [{"depth": self._depth(each)} for each in output.predicted_depth.float()]

    def _depth(self, given: Tensor) -> Tensor:
        """Return the depth of h x w values: these, or with nearness in 0 to 1, 1 where it is 0 and 1 / ratio at 1."""
        if self.is_metric:
            return given.clamp(min=torch.finfo(torch.float16).tiny)
        low, high = given.aminmax()
        nearness = (given - low) / (high - low).clamp(min=torch.finfo(given.dtype).tiny)
        return 1 / (1 + (self.ratio - 1) * nearness)


def class_probabilities(logits: Tensor) -> Tensor:
    """Map N x K x ... logits -> probabilities: softmax, or sigmoid of the only class."""
    return logits.float().softmax(1) if logits.shape[1] > 1 else logits.float().sigmoid()
