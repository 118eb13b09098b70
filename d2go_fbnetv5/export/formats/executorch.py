"""An inference module as an ExecuTorch file: its methods, the sizes of its images, and int8."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from d2go_fbnetv5.export.formats import executorch_programs
from d2go_fbnetv5.export.formats.executorch_int8 import FLOAT_MODULES, quantized
from d2go_fbnetv5.export.formats.executorch_programs import MethodSource, capture, lower_programs
from d2go_fbnetv5.export.host import HostedDetector, HostSettings, host_header
from d2go_fbnetv5.export.image_sizes import ImageSizes, guarded
from d2go_fbnetv5.export.network.flat_backbone import concatenate_to_enlarge
from d2go_fbnetv5.export.network.inference import DetectorInference
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically

SUFFIX = ".pte"
PACKAGES = executorch_programs.PACKAGES
FIXED_SIZE = True

# Layers that give a method's result stay in floats.
_RESULT_LAYERS = {"proposals": ("objectness", "deltas")}


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    size: tuple[int, int],
    least: int,
    outputs: tuple[str, ...],
    calibration: Iterable[Tensor] | None = None,
    fixed: bool = False,
) -> dict[str, Any]:
    """As `onnx.export`. A detector's file has the methods ``proposals`` and ``boxes`` for `HostedDetector`, the others
    have ``forward``, whose result is ``outputs``.

    Args:
        calibration: 1 x 3 x H x W images in 0..255 for int8, resized to ``size`` if the file does not take theirs;
            None for fp32.
        fixed: whether the file takes images of ``size`` alone: XNNPACK can then run the whole network in one piece.

    Returns:
        what model.json says of the file: ``dynamic``, whether images of other sizes may be given, and
        ``image_sizes``, which; ``int8``, and if so ``float_layers``, what is not in 8 bits; ``methods``, what each
        takes and returns; of a detector ``detector``, the `HostSettings`.

    Raises:
        ValueError: a package is missing, or there are no calibration images.
    """
    executorch_programs.require_executorch()
    sizes = ImageSizes.of(size, least, fixed=fixed)  # memory is planned for the greatest
    if calibration is None and not sizes.dynamic:  # XNNPACK reshapes along one dynamic dimension at most
        module = copy.deepcopy(module)
        concatenate_to_enlarge(module)
    methods = program_methods(module, size, sizes)
    if calibration is None:
        graphs = {name: capture(*source) for name, source in methods.items()}
    else:
        graphs = quantized_methods(module, methods, [sizes.fitted(image, size) for image in calibration])
    write_atomically(path, lower_programs(graphs))
    described: dict[str, Any] = {
        "dynamic": sizes.dynamic,
        "image_sizes": sizes.to_json(),
        "int8": calibration is not None,
        "methods": {"forward": {"input": "image", "outputs": list(outputs)}},
    }
    if calibration is not None:
        described["float_layers"] = float_layers(module)
    if isinstance(module, DetectorInference):
        described["methods"] = _DETECTOR_METHODS
        described["detector"] = HostSettings.of(module).to_json()
        described["host"] = f"{host_header().name} of the package computes the outputs from the methods"
    return described


_DETECTOR_METHODS = {
    "proposals": {
        "input": "image",
        "outputs": {
            "feature": [1, "C", "height / 8", "width / 8"],
            "objectness": [1, "A", "height / 8", "width / 8"],
            "deltas": [1, "4 A", "height / 8", "width / 8"],
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


def load(
    path: str | os.PathLike[str], described: Mapping[str, Any], threshold: float | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of a 1 x 3 x H x W image, which returns what the inference module does; a detector's leaves out the
    rows that are not there, and takes what `HostedDetector` does.

    Args:
        described: what `export` returned, or model.json. Images of sizes that it does not name are refused.
        threshold: least score of a detection, in place of the file's own.

    Raises:
        FileNotFoundError, InputError: as `executorch.load`; or ``described`` is wrong, or of another file.
    """
    program = executorch_programs.load(path)
    needed = ("proposals", "boxes") if "detector" in described else ("forward",)
    for name in needed:
        if name not in program.methods:
            raise InputError(f"{path} has the methods {', '.join(program.methods)}, but no {name}")
    if "detector" not in described:
        return guarded(lambda image: tuple(program.methods["forward"](image)), described)
    settings = HostSettings.from_json(described["detector"])
    if threshold is not None:
        settings = replace(settings, score_threshold=threshold)
    host = HostedDetector(settings, program.methods["proposals"], program.methods["boxes"])
    return guarded(host, described)


def program_methods(module: nn.Module, size: tuple[int, int], sizes: ImageSizes) -> dict[str, MethodSource]:
    """The methods of an inference module's program, with examples of ``size`` (height, width)."""
    image = torch.zeros(1, 3, *size)
    if not isinstance(module, DetectorInference):
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
    inputs = {name: [(image,) for image in images] for name in methods}
    if isinstance(module, DetectorInference):
        inputs["boxes"] = _regions(module, images)
    return {
        name: quantized(*source, inputs[name], _RESULT_LAYERS.get(name, ()))
        for name, source in methods.items()
    }


def float_layers(module: nn.Module) -> list[str]:
    """Tell what `quantized_methods` leaves in floats here: kinds of layers, and names of those that give the
    result."""
    kinds = [
        kind.__name__ for kind in FLOAT_MODULES if any(isinstance(part, kind) for part in module.modules())
    ]
    results = [name for method, names in _RESULT_LAYERS.items() if hasattr(module, method) for name in names]
    return [*kinds, *results]


@torch.no_grad()
def _regions(module: DetectorInference, images: list[Tensor]) -> list[tuple[Tensor, ...]]:
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
