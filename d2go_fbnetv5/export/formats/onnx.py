"""ONNX files: the whole model, a detector's NMS and RoIAlign included, in one graph."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.formats.base import ExportSpec, Format, OpenedFile, Run, register_format
from d2go_fbnetv5.export.image_sizes import STEP, ImageSizes
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.network.pad_channels import pad_channels
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.files import write_atomically

OPSET = 18
_MOST = 2048  # pixels of a side


@register_format("onnx")
class Onnx(Format):
    """One graph for ONNX Runtime, and whatever else reads ONNX."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "export"
    runtime = "onnxruntime"
    fixed_size = True
    parts = True
    usual = True
    foreign = True

    def write(
        self, module: nn.Module, path: str | os.PathLike[str], spec: ExportSpec
    ) -> tuple[ImageSizes, dict[str, Any]]:
        sizes = ImageSizes.of(spec.size, spec.least, _MOST, spec.fixed)
        module = copy.deepcopy(module)
        for part in list(module.modules()):
            if isinstance(part, FlatBackbone):
                pad_channels(part)
        # An example whose sides differ, lest torch takes them for one.
        image = torch.zeros(1, 3, spec.size[0], spec.size[1] + (STEP if sizes.dynamic else 0))
        content = _converted(
            module, image, sizes.dims(), input_names=["image"], output_names=list(spec.outputs)
        )
        if sizes.dynamic:
            _refuse_other_sizes(content.graph, sizes)
        write_atomically(path, content.SerializeToString())
        return sizes, {"opset": OPSET}

    def read(
        self, path: str | os.PathLike[str], described: Mapping[str, Any], threshold: float | None
    ) -> Run:
        session = _session(path if threshold is None else _with_threshold(path, threshold), path)

        def run(image: Tensor) -> tuple[Tensor, ...]:
            return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

        return run

    def compiled(self, module: nn.Module, image: Tensor) -> Callable[[], Any]:
        session = _session(_converted(module, image).SerializeToString(), "the module")
        inputs = {session.get_inputs()[0].name: image.numpy()}
        return lambda: session.run(None, inputs)

    def open(self, path: str, device: torch.device) -> OpenedFile:
        session = _session(path, path, device)
        (entry, *others), outputs = session.get_inputs(), session.get_outputs()
        if others:
            raise InputError(f"{path}: has {1 + len(others)} inputs, allowed is one, the image")

        def run(image: Tensor) -> list[Tensor]:
            try:
                return [torch.from_numpy(value) for value in session.run(None, {entry.name: image.numpy()})]
            except Exception as error:  # its errors have no common class
                raise RuntimeError(f"ONNX Runtime: {error}") from error

        size = tuple(entry.shape[-2:])
        return OpenedFile(
            run,
            torch.device("cpu"),
            tuple(output.name for output in outputs),
            batched=len(entry.shape) == 4,
            size=size if all(isinstance(side, int) for side in size) else None,
        )


def _converted(module: nn.Module, image: Tensor, dims: dict[int, Any] | None = None, **names: Any) -> Any:
    """A module as ONNX's protocol buffer, for images like an example, in whose dimensions ``dims`` they may differ."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (image,), dynamic_shapes=(dims,), strict=False)
        written: Any = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
        return written.model_proto


def _session(source: str | os.PathLike[str] | bytes, name: object, device: torch.device | None = None) -> Any:
    """ONNX Runtime's session of a file or of its content, on as many threads as torch has; errors call it ``name``."""
    runtime = require_extra("the format onnx", "onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider"] if device is not None and device.type == "cuda" else []
    providers = [p for p in (*wanted, "CPUExecutionProvider") if p in runtime.get_available_providers()]
    try:
        model = source if isinstance(source, bytes) else os.fspath(source)
        return runtime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # of onnxruntime's own classes, which share no base but this
        raise InputError(f"{name}: ONNX Runtime cannot load it: {error}") from error


def _refuse_other_sizes(graph: Any, sizes: ImageSizes) -> None:
    """Has a graph end with an error at images of other sizes, for which its operators are not right.

    ONNX cannot raise, but neither can it reshape an image to another number of pixels: to its size when that is rounded
    down to a multiple and brought between the least and the greatest.
    """
    from onnx import helper, numpy_helper

    values = {"step": (1, 1, STEP, STEP), "least": (1, 3, *sizes.least), "most": (1, 3, _MOST, _MOST)}
    for name, value in values.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), f"size_{name}"))
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "image_of_a_right_size"
    steps = [
        ("Shape", ["image"], "size"),
        ("Div", ["size", "size_step"], "size_in_steps"),
        ("Mul", ["size_in_steps", "size_step"], "size_rounded"),
        ("Max", ["size_rounded", "size_least"], "size_not_less"),
        ("Min", ["size_not_less", "size_most"], "size_allowed"),
        ("Reshape", ["image", "size_allowed"], "image_of_a_right_size"),
    ]
    for place, (kind, inputs, output) in enumerate(steps):
        graph.node.insert(place, helper.make_node(kind, inputs, [output], name=f"check_{output}"))


def _with_threshold(path: str | os.PathLike[str], threshold: float) -> bytes:
    """The content of a detector's file with another least score of a detection."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(os.fspath(path))
    (place,) = (i for i, value in enumerate(model.graph.initializer) if value.name == "least_score")
    value = numpy_helper.from_array(np.array(threshold, dtype=np.float32), "least_score")
    model.graph.initializer[place].CopyFrom(value)
    return model.SerializeToString()
