"""The contract of a format, a kind of exported file, and the formats that there are by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from d2go_fbnetv5.export.image_sizes import ImageSizes, guarded
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.utils.options import shown
from d2go_fbnetv5.utils.registry import Registry

INT8 = "-int8"  # ends the name of a format in 8 bits
# Of a file: 1 x 3 x H x W image in 0..255 -> its outputs.
Run = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class ExportSpec:
    """The wishes for a file.

    Attributes:
        size: (height, width) of the images that it is mainly for.
        least: pixels of the smallest side that the model takes.
        outputs: their names.
        calibration: 1 x 3 x H x W images in 0..255 for int8, of any size; None for fp32.
        fixed: whether the file takes images of ``size`` alone.
    """

    size: tuple[int, int]
    least: int
    outputs: tuple[str, ...]
    calibration: Iterable[Tensor] | None = None
    fixed: bool = False


@dataclass(frozen=True)
class OpenedFile:
    """A file that need not be ours.

    Attributes:
        run: an image -> a dict of tensors, or a tensor or several.
        device: that images are put on.
        names: of several outputs, where the file tells them.
        batched: whether the image has a first dimension of 1; None where the file does not tell.
        size: (height, width) that it takes alone; None where it takes others or does not tell.
    """

    run: Callable[[Tensor], Any]
    device: torch.device
    names: tuple[str, ...] = ()
    batched: bool | None = None
    size: tuple[int, int] | None = None


class Format:
    """A kind of exported file: what it can, and how one is written and run.

    A new one is a class with ``@register_format("name")`` that says what it can and has `write` and `read`.

    Attributes:
        name: that it is registered by.
        suffix: of its files, such as ".onnx"; "" where there is no file, and modules are run as they are.
        packages: that writing a file needs and that are none of our requirements.
        extra: of this package's extras, the one that installs them; "" for packages that have none.
        runtime: the module that runs a file; the first part of its name is the package, whose version matters.
        int8: a file can be in 8 bits.
        fixed_size: a file can take images of one size alone. Where it cannot, it takes a classifier's of any size.
        parts: `compiled` is there.
        foreign: `open` is there.
        usual: tools take it where the user names no format.
    """

    suffix = ""
    packages: tuple[str, ...] = ()
    extra = ""
    runtime = "torch"
    int8 = False
    fixed_size = False
    parts = False
    foreign = False
    usual = False

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self) -> None:
        """Raise an InputError that says how to install it if a package is missing."""
        for package in self.packages:
            require_extra(f"the format {self.name}", package, self.extra)

    def export(self, module: nn.Module, path: str | os.PathLike[str], spec: ExportSpec) -> dict[str, Any]:
        """Write an inference module as a file.

        Returns:
            what model.json says of the file: ``dynamic``, whether images of other sizes may be given, and
            ``image_sizes``, which; ``int8``; and what else the format says.

        Raises:
            InputError: a package is missing.
        """
        self.require()
        sizes, more = self.write(module, path, spec)
        basics = {"dynamic": sizes.dynamic, "image_sizes": sizes.to_json()}
        return {**basics, "int8": spec.calibration is not None, **more}

    def load(
        self,
        path: str | os.PathLike[str],
        described: Mapping[str, Any] | None = None,
        threshold: float | None = None,
    ) -> Run:
        """Return a file as a function of a 1 x 3 x H x W image, on as many threads as torch has.

        Args:
            described: model.json of the file; with it, images of other sizes are refused with what is allowed.
            threshold: least score of a detection, in place of the file's own.

        Raises:
            FileNotFoundError, InputError: the file or ``described`` is wrong, or a package is missing.
        """
        run = self.read(path, described or {}, threshold)
        return run if described is None else guarded(run, described)

    def write(
        self, module: nn.Module, path: str | os.PathLike[str], spec: ExportSpec
    ) -> tuple[ImageSizes, dict[str, Any]]:
        """Write the file of `export`; return the sizes of images that it takes, and what else model.json says.

        Args:
            module: 1 x 3 x H x W image -> its outputs, in evaluation mode. It is left as it is.
            path: is replaced.
            spec: asks for nothing that the format cannot.
        """
        raise NotImplementedError

    def read(
        self, path: str | os.PathLike[str], described: Mapping[str, Any], threshold: float | None
    ) -> Run:
        """Return the function of `load`, which need not look at an image's size; ``described`` may be empty."""
        raise NotImplementedError

    def compiled(self, module: nn.Module, image: Tensor) -> Callable[[], Any]:
        """Return a function that runs any module in evaluation mode on that one input."""
        raise NotImplementedError

    def open(self, path: str, device: torch.device) -> OpenedFile:
        """Open a file that need not be ours, on ``device`` if it can be. Raises an InputError where it cannot."""
        raise NotImplementedError

    def use_threads(self, count: int) -> None:
        """Have files that are loaded from now on run on ``count`` threads, where torch's number is not what counts."""


FORMATS: Registry[Format] = Registry("format")
Kind = TypeVar("Kind", bound=type[Format])


def register_format(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a subclass of `Format` known by a name; a taken one is a ValueError."""

    def register(kind: Kind) -> Kind:
        FORMATS.add(name, kind(name))
        return kind

    return register


def list_formats(capability: str = "suffix") -> list[str]:
    """Return the names of the formats that have something, an attribute of `Format`; files by default."""
    return [name for name in FORMATS.names() if getattr(FORMATS[name], capability)]


def get_format(name: str, **needed: bool) -> Format:
    """Return a format by its name.

    Args:
        needed: whether it must have the attribute of `Format`, such as ``int8=True``.

    Raises:
        InputError: it is unknown, or lacks what is needed; says which do not.
    """
    wanted = [capability for capability, is_needed in needed.items() if is_needed]
    if name not in FORMATS:
        fitting = set(FORMATS.names()).intersection(*map(list_formats, wanted))
        raise InputError(f"unknown format {shown(name)}; allowed are {', '.join(sorted(fitting))}")
    for capability in wanted:
        if not getattr(FORMATS[name], capability):
            allowed = ", ".join(list_formats(capability))
            raise InputError(f"the format {name} has no {_MEANT[capability]}; allowed are {allowed}")
    return FORMATS[name]


_MEANT = {"suffix": "file", "int8": "int8", "fixed_size": "fixed size", "parts": "latency table"}


def split_int8(name: str) -> tuple[str, bool]:
    """Return the name of a format, and whether it is in 8 bits: "executorch-int8" -> ("executorch", True)."""
    plain = name.removesuffix(INT8)
    return plain, plain != name
