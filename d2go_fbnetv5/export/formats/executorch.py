"""An inference module as an ExecuTorch file: its methods, the sizes of its images, and int8."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from d2go_fbnetv5.export.formats.base import ExportSpec, Format, Run, register_format
from d2go_fbnetv5.export.formats.executorch_int8 import FLOAT_MODULES, quantized
from d2go_fbnetv5.export.formats.executorch_programs import (
    PACKAGES,
    LoadedProgram,
    MethodSource,
    capture,
    lower,
    lower_programs,
    set_num_threads,
)
from d2go_fbnetv5.export.host import HostedDetector, HostSettings, host_header
from d2go_fbnetv5.export.image_sizes import ImageSizes
from d2go_fbnetv5.export.network.flat_backbone import concatenate_to_enlarge
from d2go_fbnetv5.export.network.inference import AnyDetector
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically

# Layers that give a method's result stay in floats.
_RESULT_LAYERS = {"proposals": ("objectness", "deltas")}


@register_format("executorch")
class ExecuTorch(Format):
    """A program for phones. A detector's has two methods, ``proposals`` and ``boxes`` for `HostedDetector`; the
    others have ``forward``."""

    suffix = ".pte"
    packages = PACKAGES
    extra = "export"
    runtime = "executorch.runtime"
    int8 = True
    fixed_size = True  # XNNPACK can then run the whole network in one piece
    parts = True
    usual = True

    def write(
        self, module: nn.Module, path: str | os.PathLike[str], spec: ExportSpec
    ) -> tuple[ImageSizes, dict[str, Any]]:
        """As `Format.write`. model.json gets ``methods``, what each takes and returns; in int8 ``float_layers``, what
        is not in 8 bits; of a detector ``detector``, the `HostSettings`."""
        sizes = ImageSizes.of(spec.size, spec.least, fixed=spec.fixed)  # memory is planned for the greatest
        calibration = spec.calibration
        if calibration is None and not sizes.dynamic:  # XNNPACK reshapes along one dynamic dimension at most
            module = copy.deepcopy(module)
            concatenate_to_enlarge(module)
        methods = program_methods(module, spec.size, sizes)
        more: dict[str, Any] = {"methods": {"forward": {"input": "image", "outputs": list(spec.outputs)}}}
        if calibration is None:
            graphs = {name: capture(*source) for name, source in methods.items()}
        else:
            graphs = quantized_methods(
                module, methods, [sizes.fitted(image, spec.size) for image in calibration]
            )
            more["float_layers"] = float_layers(module)
        write_atomically(path, lower_programs(graphs))
        if isinstance(module, AnyDetector):
            more["methods"] = _detector_methods(spec.outputs[3:])
            more["detector"] = HostSettings.of(module).to_json()
            more["host"] = f"{host_header().name} of the package computes the outputs from the methods"
        return sizes, more

    def read(
        self, path: str | os.PathLike[str], described: Mapping[str, Any], threshold: float | None
    ) -> Run:
        """As `Format.read`; a detector's ``described`` is needed, it leaves out the rows that are not there, and takes
        what `HostedDetector` does."""
        methods = LoadedProgram(path).methods
        needed = ("proposals", "boxes") if "detector" in described else ("forward",)
        for name in needed:
            if name not in methods:
                raise InputError(f"{path} has the methods {', '.join(methods)}, but no {name}")
        if "detector" not in described:
            return methods["forward"]
        settings = HostSettings.from_json(described["detector"])
        if threshold is not None:
            settings = replace(settings, score_threshold=threshold)
        return HostedDetector(settings, methods["proposals"], methods["boxes"])

    def compiled(self, module: nn.Module, image: Tensor) -> Callable[[], Any]:
        forward = LoadedProgram(lower({"forward": (module, (image,), None)})).methods["forward"]
        return lambda: forward(image)

    def use_threads(self, count: int) -> None:
        set_num_threads(count)


def _detector_methods(others: Sequence[str]) -> dict[str, Any]:
    """Describe the methods of a detector's program; ``others`` are outputs of other heads."""
    return {
        "proposals": {
            "input": "image",
            "outputs": {
                "feature": [1, "C", "height / 8", "width / 8"],
                "objectness": [1, "A", "height / 8", "width / 8"],
                "deltas": [1, "4 A", "height / 8", "width / 8"],
                **dict.fromkeys(others, "as in outputs"),
            },
            "A": "detector.cell_anchors; anchor a has the deltas 4 a to 4 a + 3",
        },
        "boxes": {
            "input": ["R", "C", "detector.resolution", "detector.resolution"],
            "outputs": {
                "probabilities": ["R", "detector.num_classes"],
                "deltas": ["R", "detector.num_classes", 4],
            },
            "R": "1 to detector.proposals_after_nms",
        },
    }


def program_methods(module: nn.Module, size: tuple[int, int], sizes: ImageSizes) -> dict[str, MethodSource]:
    """The methods of an inference module's program, with examples of ``size`` (height, width)."""
    image = torch.zeros(1, 3, *size)
    if not isinstance(module, AnyDetector):
        return {"forward": (module, (image,), (sizes.dims(),))}
    with torch.no_grad():
        channels = module.proposals(image)[0].shape[1]
    most = module.proposals_after_nms
    # The greatest number of regions, for the reason that `lower` gives.
    regions = torch.zeros(most, channels, module.resolution, module.resolution)
    count = {0: Dim("regions", min=1, max=most)} if most > 1 else None
    return {
        "proposals": (module.proposals, (image,), (sizes.dims(),)),
        "boxes": (module.boxes, (regions,), (count,)),
    }


def quantized_methods(
    module: nn.Module, methods: Mapping[str, MethodSource], calibration: Iterable[Tensor]
) -> dict[str, ExportedProgram]:
    """The graphs of `program_methods` in int8.

    Raises:
        ValueError: no calibration images, or none in which a detector proposes a box.
    """
    images = list(calibration)
    inputs: dict[str, list[tuple[Tensor, ...]]] = {name: [(image,) for image in images] for name in methods}
    if isinstance(module, AnyDetector):
        inputs["boxes"] = _regions(module, images)
    return {
        name: quantized(*source, inputs[name], _result_layers(name, source[0]))
        for name, source in methods.items()
    }


def _result_layers(method: str, module: nn.Module) -> list[str]:
    kept = _RESULT_LAYERS.get(method, ())
    return [name for name, _ in module.named_modules() if name.split(".")[-1] in kept]


def float_layers(module: nn.Module) -> list[str]:
    """Tell what `quantized_methods` leaves in floats here: kinds of layers, and names of those that give the
    result."""
    kinds = [
        kind.__name__ for kind in FLOAT_MODULES if any(isinstance(part, kind) for part in module.modules())
    ]
    results = [name for method, names in _RESULT_LAYERS.items() if hasattr(module, method) for name in names]
    return [*kinds, *results]


@torch.no_grad()
def _regions(module: AnyDetector, images: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return what the method ``boxes`` sees in images, in floats."""
    seen: list[tuple[Tensor, ...]] = []

    def record(regions: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((regions,))
        return module.boxes(regions)

    host = HostedDetector(HostSettings.of(module), module.proposals, record)
    for image in images:
        host(image)
    if images and not seen:
        raise InputError(
            "the detector proposes no box in any calibration image; int8 needs images like its own"
        )
    return seen
