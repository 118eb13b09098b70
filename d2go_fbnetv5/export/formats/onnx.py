"""ONNX files: the whole model, a detector's NMS and RoIAlign included, in one graph."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.image_sizes import STEP, ImageSizes, guarded
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.network.pad_channels import pad_channels
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.files import write_atomically

SUFFIX = ".onnx"
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FIXED_SIZE = True
_MOST = 2048  # pixels of a side


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    size: tuple[int, int],
    least: int,
    outputs: tuple[str, ...],
    calibration: Iterable[Tensor] | None = None,
    fixed: bool = False,
) -> dict[str, Any]:
    """Writes an inference module as one file.

    Args:
        module: 1 x 3 x H x W image -> its outputs.
        path: of the file, which is replaced.
        size: (height, width) of the images. Multiples of 32 leave them dynamic, unless they are to be ``fixed``.
        least: pixels of the smallest side.
        outputs: their names.
        calibration: must be None, there is no int8 here.
        fixed: whether the file takes images of ``size`` alone.

    Returns:
        what model.json says of the file: ``dynamic``, whether images of other sizes may be given, and
        ``image_sizes``, which; ``int8``, False; ``opset``.

    Raises:
        ValueError: a package is missing, or int8 is asked for.
    """
    for package in PACKAGES:
        require_extra("the format onnx", package, "export")
    if calibration is not None:
        raise InputError("int8 is for the format executorch, found onnx")
    sizes = ImageSizes.of(size, least, _MOST, fixed)
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        if isinstance(part, FlatBackbone):
            pad_channels(part)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An example whose sides differ, lest torch takes them for one.
        image = torch.zeros(1, 3, size[0], size[1] + (STEP if sizes.dynamic else 0))
        program = torch.export.export(module, (image,), dynamic_shapes=(sizes.dims(),), strict=False)
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            verbose=False,
        )
        content = written.model_proto
    if sizes.dynamic:
        _refuse_other_sizes(content.graph, sizes)
    write_atomically(path, content.SerializeToString())
    return {
        "dynamic": sizes.dynamic,
        "image_sizes": sizes.to_json(),
        "int8": False,
        "opset": OPSET,
    }


def load(
    path: str | os.PathLike[str],
    described: Mapping[str, Any] | None = None,
    threshold: float | None = None,
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of a 1 x 3 x H x W image, run by ONNX Runtime on as many threads as torch has.

    Args:
        described: model.json of the file; with it, images of other sizes are refused with what is allowed.
        threshold: least score of a detection, in place of the file's own.

    Raises:
        InputError: onnxruntime is missing, or cannot load the file, or ``described`` is wrong.
    """
    require_extra("the format onnx", "onnxruntime", "export")
    source = os.fspath(path) if threshold is None else _with_threshold(path, threshold)
    try:
        session = open_session(source, torch.get_num_threads())
    except Exception as error:  # of onnxruntime's own classes, which share no base but this
        raise InputError(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    return run if described is None else guarded(run, described)


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


def open_session(model: str | bytes, threads: int) -> Any:
    """ONNX Runtime's session of a file or of its content, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
