"""Teachers "torchscript", "onnx", and of every other format that opens files of any origin: a model that is one file.

Input: one image, 1 x 3 x H x W (or 3 x H x W), float32, RGB (or BGR), less ``mean`` and divided by ``std``, which are
of pixel values in 0..255. Output, by name, with or without a first dimension of 1:

- ``boxes`` (M x 4, XYXY in pixels of the input), ``scores`` (M, 0..1), ``labels`` (M); a label below 0 fills up a list
  of fixed length;
- ``probabilities`` (K x h x w, of the whole input);
- ``class_scores`` (K).

An ONNX file names its outputs. TorchScript gives a dict, or a tensor or tuple whose names the option ``outputs`` says.
This is also what our own exported models are: ``{multiple_of: 32, outputs: [boxes, scores, labels]}``.

A TorchScript file is a program: take it from those whom you would take a program from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.export.formats.base import FORMATS, Format, OpenedFile
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, register_teacher
from d2go_fbnetv5.pseudo_labels.teachers.common import ClassList, bounded, name_list
from d2go_fbnetv5.tasks.images import image_size
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options

_RANKS = {"boxes": 2, "scores": 1, "labels": 1, "probabilities": 3, "class_scores": 1}
_NEEDED = {
    "box_names": ("boxes", "scores", "labels"),
    "sem_seg_names": ("probabilities",),
    "class_names": ("class_scores",),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "softmax": lambda scores: scores.softmax(0),
    "sigmoid": lambda scores: scores.sigmoid(),
    "sums": bounded,
}
_LONGEST = 2**14  # pixels; of a side, as more fills the memory
_PROBED = 256  # pixels; the side of the grey image that a file is tried with


@dataclass
class FileOptions:
    """A file's inputs and outputs, with the classes of at least one kind.

    Attributes:
        path: of the file.
        box_names, sem_seg_names, class_names: of the classes; "N/A" leaves one out.
        outputs: names of the file's outputs in their order; "" for one that is not needed.
        size: (height, width) that images are stretched to; by default what the file says, or their own.
        short_side, max_size: in place of ``size``: the short side that images are resized to, and a bound on the long
            one.
        multiple_of: height and width are then stretched to multiples of it, the nearest.
        mean, std: of the pixels, in the order of the channels.
        bgr: whether the channels are blue, green, red.
        batched: whether the input has a first dimension of 1.
        first_label: the label of the first of ``box_names``; 1 where 0 is the background.
        boxes_in: "pixels" of the input, or "shares" of its width and height.
        activation: of ``probabilities`` and ``class_scores``: "softmax" or "sigmoid" where they are logits, "none"
            where they are probabilities, "sums" where they may exceed 1, as MaskFormer's do.
    """

    path: str
    box_names: Sequence[str] = ()
    sem_seg_names: Sequence[str] = ()
    class_names: Sequence[str] = ()
    outputs: Sequence[str] = ()
    size: tuple[int, int] | None = None
    short_side: int | None = None
    max_size: int | None = None
    multiple_of: int = 1
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    batched: bool = True
    first_label: int = 0
    boxes_in: str = "pixels"
    activation: str = "none"

    def __post_init__(self) -> None:
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"path names {self.path}, which does not exist")
        for option in _NEEDED:
            setattr(self, option, name_list(option, getattr(self, option)))
        if not any(getattr(self, option) for option in _NEEDED):
            raise InputError(f"none of {', '.join(_NEEDED)} is given, of which one is needed at least")
        for name in self.outputs:
            if name and name not in _RANKS:
                raise InputError(f"outputs has {name!r}, allowed are {', '.join(_RANKS)} and ''")
        for option, allowed in (("boxes_in", ("pixels", "shares")), ("activation", _ACTIVATIONS)):
            if getattr(self, option) not in allowed:
                raise InputError(f"{option} is {getattr(self, option)!r}, allowed are {', '.join(allowed)}")
        if self.size is not None:
            if self.short_side is not None:
                raise InputError("size and short_side exclude each other")
            if not isinstance(self.size, list | tuple) or len(self.size) != 2:
                raise InputError(f"size is {self.size!r}, it must be [height, width]")
            if not 1 <= min(self.size) <= max(self.size) <= _LONGEST:
                raise InputError(f"size is {self.size!r}, allowed are 1 to {_LONGEST}")
        if self.max_size is not None and self.short_side is None:
            raise InputError(f"max_size is {self.max_size}, allowed without short_side: nothing")
        for option, low, high in (
            ("short_side", 1, _LONGEST),
            ("max_size", 1, _LONGEST),
            ("multiple_of", 1, _LONGEST),
            ("first_label", 0, 1000),
        ):
            value = getattr(self, option)
            if value is not None and not low <= value <= high:
                raise InputError(f"{option} is {value}, allowed are {low} to {high}")
        for option in ("mean", "std"):
            if len(getattr(self, option)) != 3:
                raise InputError(f"{option} is {getattr(self, option)!r}, it must be three numbers")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std!r}, it must be positive")


def _register(name: str, format: Format) -> None:
    def build(device: torch.device, path: str, **options: Any) -> Teacher:
        """Label by a file of a format; options as `FileOptions` has them.

        Raises:
            FileNotFoundError, ValueError: no such file, not of the format, a package is missing, or it is not with the
                outputs that the names need.
        """
        what = f"{name} {path}"
        described = _described(what, path, options)
        return _ExportedModel(what, format.open(path, device), described)

    if format.foreign:
        build.__module__ = type(format).__module__  # whose code it is
        register_teacher(name)(build)


FORMATS.follow(_register)


def _described(what: str, path: str, options: Mapping[str, Any]) -> FileOptions:
    bound = bind_options(what, FileOptions, {"path": path, **options})
    try:
        return FileOptions(**bound)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


class _ExportedModel(Teacher):
    def __init__(self, what: str, file: OpenedFile, options: FileOptions) -> None:
        self.file, self.options, self.device = file, options, file.device
        self.batched = options.batched if file.batched is None else file.batched
        self.size = options.size or (file.size if options.short_side is None else None)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (options.mean, options.std))
        self.resize = EvalTransform(options.short_side, max_size=options.max_size)
        entries = {option: getattr(options, option) for option in _NEEDED}
        entries["box_names"] = (*[None] * options.first_label, *entries["box_names"])
        self.classes = {option: ClassList(names) for option, names in entries.items()}
        for option, classes in self.classes.items():
            setattr(self, option, classes.names)
        try:
            with torch.no_grad():
                self([torch.full((3, _PROBED, _PROBED), 128, dtype=torch.uint8)])
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{what}, tried with a grey image: {error}") from error

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._label(image) for image in images]

    def _label(self, image: Tensor) -> dict[str, Tensor]:
        size = image_size(image)
        prepared = self._prepare(image)
        output = self._named(self.file.run(prepared))
        found: dict[str, Tensor] = {}
        if self.box_names:
            found |= self._boxes(output, size, image_size(prepared))
        activation = _ACTIVATIONS[self.options.activation]
        for option, name in (("sem_seg_names", "probabilities"), ("class_names", "class_scores")):
            if self.classes[option].names:
                found[name] = self.classes[option].scores(activation(output[name].float()))
        return found

    def _prepare(self, image: Tensor) -> Tensor:
        options = self.options
        image = self.resize({"image": image})["image"]
        height, width = self.size or image.shape[-2:]
        divisor = options.multiple_of
        target = [max(1, round(side / divisor)) * divisor for side in (height, width)]
        if target != list(image.shape[-2:]):
            image = v2.functional.resize(image, target)
        image = ((image.flip(0) if options.bgr else image).float() - self.mean) / self.std
        return (image[None] if self.batched else image).contiguous().to(self.device)

    def _named(self, output: Any) -> dict[str, Tensor]:
        """The outputs that are needed by their names, without a first dimension of 1."""
        if not isinstance(output, Mapping):
            values = list(output) if isinstance(output, list | tuple) else [output]
            names = list(self.options.outputs or self.file.names)
            if len(names) != len(values):
                raise InputError(
                    f"gives {len(values)} outputs without names, and the option outputs names {len(names)}"
                )
            output = dict(zip(names, values, strict=True))
        needed = [name for option, names in _NEEDED.items() if self.classes[option].names for name in names]
        found = {}
        for name in needed:
            if name not in output:
                raise InputError(f"gives {', '.join(output)}, but no {name}")
            value, rank = output[name], _RANKS[name]
            if not isinstance(value, Tensor):
                raise InputError(f"its {name} are a {type(value).__name__}, not a tensor")
            if value.dim() == rank + 1 and len(value) == 1:
                value = value[0]
            if value.dim() != rank:
                raise InputError(f"its {name} are of shape {tuple(value.shape)}, not of {rank} dimensions")
            found[name] = value
        return found

    def _boxes(
        self, output: dict[str, Tensor], size: tuple[int, int], prepared: tuple[int, int]
    ) -> dict[str, Tensor]:
        present = output["labels"] >= 0
        boxes, scores, labels = (output[name][present] for name in ("boxes", "scores", "labels"))
        whole = (1, 1) if self.options.boxes_in == "shares" else prepared
        scale = torch.tensor([size[1] / whole[1], size[0] / whole[0]] * 2, device=boxes.device)
        return self.classes["box_names"].boxes(boxes.float() * scale, scores.float(), labels)
