"""Modules as a runtime executes them on one thread of this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.formats import executorch_programs, onnx
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra

RUNTIMES = {"executorch": ("executorch", "torch"), "onnx": ("onnxruntime", "torch"), "eager": ("torch",)}
"""By name, the packages whose versions matter."""


def use_one_thread(runtime: str) -> None:
    """Has the runtime compute on the calling thread alone. Programs of ExecuTorch must be loaded after it.

    Raises:
        ValueError: an unknown runtime, or one that is not installed.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"unknown runtime {runtime!r}; allowed are {', '.join(RUNTIMES)}")
    torch.set_num_threads(1)
    if runtime == "executorch":
        executorch_programs.set_num_threads(1)


def compiled(module: nn.Module, image: Tensor, runtime: str) -> Callable[[], Any]:
    """A function that runs a module in evaluation mode on that one input.

    Raises:
        ValueError: an unknown runtime, or one that is not installed.
    """
    if runtime == "executorch":
        program = executorch_programs.load(executorch_programs.lower({"forward": (module, (image,), None)}))
        return lambda: program.methods["forward"](image)
    if runtime == "onnx":
        session = _onnx_session(module, image)
        inputs = {session.get_inputs()[0].name: image.numpy()}
        return lambda: session.run(None, inputs)
    if runtime == "eager":
        # The layout of the models' own training and evaluation.
        module = module.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: module(image))
    raise InputError(f"unknown runtime {runtime!r}; allowed are {', '.join(RUNTIMES)}")


def _onnx_session(module: nn.Module, image: Tensor) -> Any:
    for package in onnx.PACKAGES:
        require_extra("the format onnx", package, "export")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (image,), dynamo=True, opset_version=onnx.OPSET, verbose=False)
    return onnx.open_session(program.model_proto.SerializeToString(), threads=1)


def versions(packages: Iterable[str]) -> str:
    """Such as "executorch 1.5.1, torch 2.14.1"."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def machine() -> str:
    """This machine's processor, such as "x86_64, AMD EPYC"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join([platform.machine(), *models[:1]])
