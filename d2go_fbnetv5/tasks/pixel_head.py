"""The common ground of search heads that give a value for each pixel (Appendix F.1)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from d2go_fbnetv5.arch.blocks import zero_bias
from d2go_fbnetv5.tasks.base import Task, require_feature
from d2go_fbnetv5.tasks.images import upsample_bilinear
from d2go_fbnetv5.utils.errors import InputError


class PixelHead(Task):
    """A single convolution on one path, whose maps are enlarged to the size of the padded images.

    Args:
        channels: channels of each path.
        outputs: maps that it gives.
        feature: the path that it reads.
        kernel_size: of the convolution, odd.
        input_norm: batch norm before the convolution, over labelled and unlabelled samples alike. Without it the
            head meets features whose scale grows with the number of blocks that a topology keeps.
    """

    in_features = ("path2",)

    def __init__(
        self, channels: Mapping[str, int], outputs: int, feature: str, kernel_size: int, input_norm: bool
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(
                f"option 'kernel_size' of task {self.name!r} is {kernel_size}; it must be odd and positive"
            )
        width = require_feature(self.name, feature, channels)
        self.in_features = (feature,)
        self.norm = nn.BatchNorm2d(width) if input_norm else nn.Identity()
        self.predictor = nn.Conv2d(width, outputs, kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.predictor.weight, std=0.01)
        zero_bias(self.predictor)

    def maps(
        self, features: Mapping[str, Tensor], size: tuple[int, int], chosen: Sequence[int] | None = None
    ) -> Tensor:
        """Return N x ``outputs`` x H x W float32 for ``size``, of the ``chosen`` images alone if they are given."""
        feature = self.norm(features[self.in_features[0]])
        if chosen is not None and len(chosen) < len(feature):
            feature = feature[chosen]
        return upsample_bilinear(self.predictor(feature).float(), size)
