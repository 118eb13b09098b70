"""ONNX files: the whole model, a detector's NMS and RoIAlign included, in one graph."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.image_sizes import STEP, ImageSizes
from d2go_fbnetv5.export.missing import require
from d2go_fbnetv5.export.pad_channels import pad_channels
from d2go_fbnetv5.utils.errors import InputError

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
    require("onnx", *PACKAGES)
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
        written.save(os.fspath(path))
    return {
        "dynamic": sizes.dynamic,
        "image_sizes": sizes.to_json(),
        "int8": False,
        "opset": OPSET,
    }


def load(
    path: str | os.PathLike[str], described: Mapping[str, Any] | None = None
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of a 1 x 3 x H x W image, run by ONNX Runtime on as many threads as torch has.

    Args:
        described: what `export` returned, not needed here.

    Raises:
        ValueError: onnxruntime is missing, or cannot load the file.
    """
    require("onnx", "onnxruntime")
    try:
        session = open_session(os.fspath(path), torch.get_num_threads())
    except Exception as error:  # of onnxruntime's own classes, which share no base but this
        raise InputError(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    return run


def open_session(model: str | bytes, threads: int) -> Any:
    """ONNX Runtime's session of a file or of its content, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
