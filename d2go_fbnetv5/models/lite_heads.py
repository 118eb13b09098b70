"""The convolutional parts of Lite R-CNN (Appendix G.2), usable on their own.

The appendix swaps the names of the two; Table 7's FLOPs fit the reading here only.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from d2go_fbnetv5.arch.blocks import InvertedResidual, make_divisible, zero_bias
from d2go_fbnetv5.utils.rules import between

_RPN_CHANNELS = 96
_BOX_CHANNELS = (128, 128, 128, 160)
WIDTHS = between(0.05, 8)  # what the paper's channels may be multiplied by


def rpn_channels(width: float) -> int:
    """Return the channels of the paper's RPN head times ``width``, rounded by the families' rule."""
    return make_divisible(_RPN_CHANNELS * width)


def box_channels(width: float) -> list[int]:
    """Return the channels of the blocks of the paper's box head times ``width``, by the same rule."""
    return [make_divisible(channels * width) for channels in _BOX_CHANNELS]


class LiteRPNHead(nn.Module):
    """Three inverted residuals (k3, expansion 3, 96 channels, squeeze-and-excitation with a hard-sigmoid), then
    1 x 1 convolutions for the objectness and the box deltas of each anchor.

    The contract is that of Detectron2's and torchvision's RPN heads.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int = 15,
        channels: int = _RPN_CHANNELS,
        num_blocks: int = 3,
        expansion: float = 3,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_blocks
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(a, b, kernel_size=3, expansion=expansion, se="hard_sigmoid")
                for a, b in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            zero_bias(layer)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level N x C x H x W -> N x A x H x W logits and N x 4A x H x W deltas, in float32."""
        hidden = [self.blocks(feature) for feature in features]
        return [self.objectness(x).float() for x in hidden], [self.deltas(x).float() for x in hidden]


class LiteBoxHead(nn.Module):
    """Four inverted residuals (k3, no squeeze-and-excitation) on the features of a region, the first with
    stride 2, then the mean over positions.

    Attributes:
        out_channels: of the region's vector.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = _BOX_CHANNELS,
        expansions: Sequence[float] = (4, 6, 6, 6),
    ) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(a, b, kernel_size=3, stride=2 if i == 0 else 1, expansion=expansion)
                for i, (a, b, expansion) in enumerate(zip(widths[:-1], channels, expansions, strict=True))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out_channels = widths[-1]

    def forward(self, regions: Tensor) -> Tensor:
        """R x C x 6 x 6 -> R x ``out_channels``."""
        return self.pool(self.blocks(regions)).flatten(1)


class BoxPredictor(nn.Module):
    """A region's class and one box per class: R x C -> R x (K + 1) logits, background last, and R x K x 4."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = nn.Linear(in_channels, num_classes + 1)
        self.deltas = nn.Linear(in_channels, 4 * num_classes)
        for layer, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            zero_bias(layer)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(regions).float(), self.deltas(regions).float().unflatten(1, (self.num_classes, 4))
