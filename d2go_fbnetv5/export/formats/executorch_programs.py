"""ExecuTorch programs: lowering modules to XNNPACK, loading them and running them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra

PACKAGES = ("executorch", "torchao")

# A module, its example inputs, and what `torch.export` takes as dynamic shapes (None for fixed ones).
MethodSource = tuple[nn.Module, tuple[Tensor, ...], Any]
# Tensors in, tensors out.
Method = Callable[..., list[Tensor]]


def require_executorch() -> None:
    """Raises a ValueError that says how to install ExecuTorch if it is missing."""
    for package in PACKAGES:
        require_extra("the format executorch", package, "export")


def lower(methods: Mapping[str, MethodSource]) -> bytes:
    """Modules -> one ExecuTorch program (the content of a .pte file) whose convolutions and matrix products run in
    XNNPACK.

    Args:
        methods: by method name: a module in evaluation mode, its example inputs, and the dynamic shapes that
            `torch.export.export` takes. Memory is planned for the greatest sizes that they allow. Where the batch is
            dynamic, give examples of the greatest one: torch chooses between kinds of convolution at a batch of 16,
            and an example below ties the program to less than 16. (It does run with less than its example.)

    Raises:
        ValueError: ExecuTorch is not installed.
    """
    return lower_programs({name: capture(*source) for name, source in methods.items()})


def capture(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """The graph of a module in evaluation mode, at all sizes that ``dynamic_shapes`` allow."""
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, strict=False)


def lower_programs(programs: Mapping[str, torch.export.ExportedProgram]) -> bytes:
    """`lower` for graphs that were captured (and perhaps quantised) before."""
    require_executorch()
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        # The validity check refuses operators that are in no core set but do have a kernel; a missing kernel shows
        # when the program is loaded.
        edge = to_edge_transform_and_lower(
            dict(programs),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        return edge.to_executorch().buffer


class LoadedProgram:
    """An ExecuTorch program in memory.

    Attributes:
        methods: by name; a method takes its input tensors and returns its output tensors.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        """Loads a .pte file, or its content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ExecuTorch is not installed, or cannot load it.
        """
        require_executorch()
        with _quiet():
            from executorch.runtime import Runtime

        data = source if isinstance(source, bytes) else _read(source)
        name = "the program" if isinstance(source, bytes) else str(source)
        try:
            self._program = Runtime.get().load_program(data)
            self.methods: dict[str, Method] = {
                method: self._method(method) for method in sorted(self._program.method_names)
            }
        except RuntimeError as error:
            raise InputError(f"{name}: ExecuTorch cannot load it: {error}") from error

    def _method(self, name: str) -> Method:
        program = self._program
        method = program.load_method(name)

        # A method reads its program's memory, which must live as long as it does.
        def run(*inputs: Tensor, program: Any = program) -> list[Tensor]:
            try:
                return list(method.execute([x.contiguous() for x in inputs]))
            except RuntimeError as error:
                shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
                raise InputError(
                    f"method {name!r} cannot run inputs of {shapes}: {method.metadata}: {error}"
                ) from error

        return run


def num_threads() -> int:
    """Threads that XNNPACK runs on in this process."""
    require_executorch()
    with _quiet():
        from executorch.extension.pybindings import portable_lib

        return portable_lib._threadpool_get_thread_count()


def set_num_threads(count: int) -> None:
    """Has XNNPACK run on ``count`` threads in this process, in programs loaded from now on.

    The pool is replaced, so no method may be running, and programs loaded earlier must not be run any more.
    """
    if count < 1:
        raise InputError(f"{count} threads; allowed is 1 or more")
    require_executorch()
    with _quiet():
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(count)


def _read(path: str | os.PathLike[str]) -> bytes:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    with open(path, "rb") as file:
        return file.read()


@contextmanager
def _quiet() -> Any:
    """Without the warnings of ExecuTorch's own experimental interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
