"""Post-training int8 quantisation for XNNPACK: static activations, weights per channel (torchao's PT2E)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from d2go_fbnetv5.arch.blocks import SqueezeExcite
from d2go_fbnetv5.export.formats.executorch_programs import capture, require_executorch
from d2go_fbnetv5.models.lite_maskformer import SegmentationModule
from d2go_fbnetv5.models.transformer_decoder import DecoderLayer
from d2go_fbnetv5.utils.errors import InputError

# Modules that stay in floats. All are cheap, and a gate, an attention or a class' score needs more than 8 bits.
FLOAT_MODULES: tuple[type[nn.Module], ...] = (SqueezeExcite, DecoderLayer, SegmentationModule, nn.Linear)

# Flattening does once it is lowered to a view.
_ASK_THE_SIZE = (torch.ops.aten.sym_size.int, torch.ops.aten.flatten.using_ints)
_MULTIPLY = (torch.ops.aten.mul.Tensor,)  # of an image by its normalisation, or of channels that are averaged


def quantized(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic_shapes: Any,
    calibration: Iterable[tuple[Tensor, ...]],
    float_layers: Iterable[str] = (),
) -> torch.export.ExportedProgram:
    """The module's graph with int8 convolutions, sums and concatenations, for `lower_programs`.

    The ranges of activations are those that the calibration shows; a weight's are its channel's greatest. Modules of
    `FLOAT_MODULES` stay as they are, and layers whose result's size is looked at.

    Args:
        module: in evaluation mode, batch norm folded.
        inputs, dynamic_shapes: as `torch.export.export` takes them.
        calibration: one tuple of inputs or more.
        float_layers: names of further modules that stay as they are, such as those that give the result.

    Raises:
        ValueError: no calibration inputs, or ExecuTorch is not installed.
    """
    require_executorch()
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer = XNNPACKQuantizer().set_global(
        _with_plain_ranges(get_symmetric_quantization_config(is_per_channel=True))
    )
    kept = set(float_layers)
    unknown = kept - {name for name, _ in module.named_modules()}
    if unknown:
        raise InputError(f"float_layers has {', '.join(sorted(unknown))}, which the module does not have")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        source = capture(module, inputs, dynamic_shapes).module()
        # XNNPACK takes an int8 convolution only if nothing but the rounding reads its result, not even its height.
        sized = {node.args[0].name for node in source.graph.nodes if node.target in _ASK_THE_SIZE}
        quantizer.set_filter_function(lambda node: node.name not in sized and _is_quantized(node, kept))
        graph = prepare_pt2e(source, quantizer)
        count = 0
        for example in calibration:
            graph(*example)
            count += 1
        if count == 0:
            raise InputError("no calibration images; int8 needs one or more")
        return capture(convert_pt2e(graph), inputs, dynamic_shapes)


def _with_plain_ranges(config: Any) -> Any:
    """XNNPACK's configuration with the moving mean of the images' ranges for activations, in place of its histograms,
    which take several times as long to calibrate."""
    from torchao.quantization.pt2e import MovingAverageMinMaxObserver

    observer = MovingAverageMinMaxObserver.with_args(averaging_constant=0.05, eps=2**-12)
    activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
    return dataclasses.replace(config, input_activation=activation, output_activation=activation)


def _is_quantized(node: Node, float_layers: set[str]) -> bool:
    """Return whether a node of a captured graph may compute in int8."""
    if node.target in _MULTIPLY:
        return False
    for name, kind in node.meta.get("nn_module_stack", {}).values():
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if kind in _FLOAT_NAMES or name in float_layers:
            return False
    return True


_FLOAT_NAMES = {f"{kind.__module__}.{kind.__qualname__}" for kind in FLOAT_MODULES}
