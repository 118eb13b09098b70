"""Post-training int8 quantisation of a detector, by D2Go's RCNN_PREPARE_FOR_QUANT (its eager mode)."""

from __future__ import annotations

from d2go.modeling.meta_arch.rcnn import RCNN_PREPARE_FOR_QUANT_REGISTRY
from d2go.quantization.qconfig import set_backend_and_create_qconfig
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import QConfig, QuantWrapper, fuse_modules

from d2go_fbnetv5.arch.blocks import ConvBNAct, InvertedResidual, SqueezeExcite
from d2go_fbnetv5.utils.errors import InputError


@RCNN_PREPARE_FOR_QUANT_REGISTRY.register()
def fbnetv5_rcnn_prepare_for_quant(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Each partition and block of the backbone and each head becomes an int8 island; paths are fused, and regions
    pooled, in floats.

    A saved model takes the engine that is set while it is loaded. It gives this model's outputs on that of
    QUANTIZATION.BACKEND: ``torch.backends.quantized.engine = "fbgemm"``, which D2Go sets, and torch by itself does not.

    Raises:
        ValueError: QUANTIZATION.QAT.ENABLED.
    """
    if cfg.QUANTIZATION.QAT.ENABLED:
        raise InputError(
            "QUANTIZATION.QAT.ENABLED is True, allowed for FBNetV5's blocks: False (they quantise after)"
        )
    qconfig = set_backend_and_create_qconfig(cfg, is_train=False)
    _quantize_children(model, qconfig)
    return model


def _quantize_children(module: nn.Module, qconfig: QConfig) -> None:
    for name, child in list(module.named_children()):
        if _is_chain(child) or isinstance(child, (nn.Conv2d, nn.Linear)):
            island = QuantWrapper(_quantizable(child))
            island.qconfig = qconfig
            setattr(module, name, island)
        else:
            _quantize_children(child, qconfig)


def _is_chain(module: nn.Module) -> bool:
    """Return whether it is a sequence of our blocks."""
    return (
        type(module) is nn.Sequential
        and len(module) > 0
        and all(isinstance(child, (ConvBNAct, InvertedResidual)) for child in module)
    )


def _quantizable(module: nn.Module) -> nn.Module:
    """The same weights, batch norms folded into convolutions, sums and products as modules that can be observed."""
    if isinstance(module, InvertedResidual):
        return QuantizableResidual(module)
    if isinstance(module, SqueezeExcite):
        return QuantizableSqueezeExcite(module)
    if isinstance(module, ConvBNAct):
        names = ["conv", "bn"] + (["act"] if isinstance(module[-1], nn.ReLU) else [])
        return fuse_modules(module.eval(), names)
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
