"""int8 under D2Go, after and while training: islands of 8 bits in the eager mode of `torch.ao.quantization`."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from d2go.modeling.meta_arch.rcnn import RCNN_PREPARE_FOR_QUANT_REGISTRY
from d2go.quantization.qconfig import set_backend_and_create_qconfig
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import FakeQuantizeBase, QuantWrapper, fuse_modules, fuse_modules_qat

from d2go_fbnetv5.arch.blocks import ConvBNAct, InvertedResidual, MBPool, SqueezeExcite
from d2go_fbnetv5.models import TransformerDecoder
from d2go_fbnetv5.models.lite_maskformer import SegmentationModule
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.ranks import is_distributed

_BLOCKS = (ConvBNAct, InvertedResidual, MBPool)
_IN_FLOATS = (TransformerDecoder, SegmentationModule)


@RCNN_PREPARE_FOR_QUANT_REGISTRY.register()
def fbnetv5_rcnn_prepare_for_quant(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """See `prepare_for_quant`, which this is for detectors, by RCNN_PREPARE_FOR_QUANT."""
    return prepare_for_quant(model, cfg)


def prepare_for_quant(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Make each partition and block of the backbone, each head and each convolution and linear layer an island that
    D2Go quantises, in place; paths are fused, and regions pooled, in floats.

    While training (QUANTIZATION.QAT.ENABLED) batch norms stay within their convolutions' islands, else they are folded.
    In floats remain, too, Lite MaskFormer's transformer decoder and mask embedding, and layers of other classes than
    torch's own, such as those of Detectron2's FPN. A line of the log says which.

    A saved model takes the engine that is set while it is loaded. It gives this model's outputs on that of
    QUANTIZATION.BACKEND: ``torch.backends.quantized.engine = "fbgemm"``, which D2Go sets, and torch by itself does not.

    Raises:
        ValueError: the model has none of our blocks.
    """
    if not any(isinstance(module, _BLOCKS) for module in model.modules()):
        raise InputError(
            f"the model to quantise, a {type(model).__name__}, has none of FBNetV5's blocks; RCNN_PREPARE_FOR_QUANT "
            "default_rcnn_prepare_for_quant is D2Go's own way"
        )
    qconfig = set_backend_and_create_qconfig(cfg, is_train=model.training)
    left: list[str] = []
    _make_islands(model, qconfig, "", left)
    logging.getLogger(__name__).info(
        "In floats: fusion of paths, normalisation, %s", ", ".join(left) or "nothing else"
    )
    return model


def _make_islands(module: nn.Module, qconfig: object, prefix: str, left: list[str]) -> None:
    for name, child in list(module.named_children()):
        if _is_island(child):
            island = QuantWrapper(_quantizable(child))
            island.qconfig = qconfig
            setattr(module, name, island)
        elif isinstance(child, (*_IN_FLOATS, nn.Conv2d, nn.Linear)):
            left.append(f"{prefix}{name}")
        else:
            _make_islands(child, qconfig, f"{prefix}{name}.", left)


def _is_island(module: nn.Module) -> bool:
    if isinstance(module, MBPool) or type(module) in (nn.Conv2d, nn.Linear):
        return True
    return (
        type(module) is nn.Sequential
        and len(module) > 0
        and all(isinstance(child, (ConvBNAct, InvertedResidual)) for child in module)
    )


def _quantizable(module: nn.Module) -> nn.Module:
    """The same weights in the same order, sums and products as modules that can be observed, and each batch norm within
    its convolution."""
    if isinstance(module, InvertedResidual):
        return QuantizableResidual(module)
    if isinstance(module, SqueezeExcite):
        return QuantizableSqueezeExcite(module)
    if isinstance(module, MBPool):
        return nn.Sequential(_quantizable(module.pw), module.pool, module.pwl, module.act)
    if isinstance(module, ConvBNAct):
        names = ["conv", "bn"] + (["act"] if isinstance(module[-1], nn.ReLU) else [])
        fused = (fuse_modules_qat if module.training else fuse_modules)(module, names)
        return nn.Sequential(*(layer for layer in fused if not isinstance(layer, nn.Identity)))
    if type(module) is nn.Sequential:
        return nn.Sequential(*map(_quantizable, module))
    return module


class QuantizableResidual(nn.Module):
    """`InvertedResidual` in a form that eager quantisation can observe."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        parts = [part for part in (block.pw, block.dw, block.se, block.pwl) if part is not None]
        self.parts = nn.Sequential(*map(_quantizable, parts))
        self.add = FloatFunctional() if block.residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts(x)
        return y if self.add is None else self.add.add(x, y)


class QuantizableSqueezeExcite(nn.Module):
    """`SqueezeExcite` in a form that eager quantisation can observe."""

    def __init__(self, block: SqueezeExcite) -> None:
        super().__init__()
        self.weigh = nn.Sequential(block.pool, block.reduce, block.act, block.expand, block.gate)
        self.mul = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.mul.mul(x, self.weigh(x))


def allow_zero_norms(model: nn.Module) -> None:
    """Let a fake-quantised convolution whose batch norm is 0, as where a residual block begins, compute what it is to,
    in place: torch's faster way divides by it. Others take the faster way, so this has to see the weights with which
    the training begins."""
    for module in model.modules():
        if hasattr(module, "_enable_slow_path_for_better_numerical_stability"):
            module._enable_slow_path_for_better_numerical_stability = bool((module.bn.weight == 0).any())


@torch.no_grad()
def join_ranges(model: nn.Module) -> None:
    """Give every process the ranges that hold those of all processes, in place.

    While training for int8 each process observes its own images, and a file has process 0's ranges. Every process must
    call it.
    """
    if not is_distributed():
        return
    quantizers = [
        module
        for module in model.modules()
        if isinstance(module, FakeQuantizeBase) and hasattr(module.activation_post_process, "min_val")
    ]
    if not quantizers:
        return
    observers = [module.activation_post_process for module in quantizers]
    counts = [observer.min_val.numel() for observer in observers]
    least = torch.cat([observer.min_val.flatten() for observer in observers])
    greatest = torch.cat([observer.max_val.flatten() for observer in observers])
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    ranges = zip(least.split(counts), greatest.split(counts), strict=True)
    for module, observer, (low, high) in zip(quantizers, observers, ranges, strict=True):
        observer.min_val.copy_(low.view_as(observer.min_val))
        observer.max_val.copy_(high.view_as(observer.max_val))
        # One that has seen nothing has infinite ranges, and one that learns its scale has it from the gradients.
        if low.isfinite().all() and not isinstance(module.scale, nn.Parameter):
            scale, zero_point = observer.calculate_qparams()
            module.scale.copy_(scale.view_as(module.scale))
            module.zero_point.copy_(zero_point.view_as(module.zero_point))
