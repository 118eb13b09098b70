"""Region features at the nominal stride."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import roi_align


class StrideRoIAlign(nn.Module):
    """RoIAlign on one feature, for torchvision's ``RoIHeads``.

    torchvision's ``MultiScaleRoIAlign`` guesses the scale from the first batch's sizes and keeps it; padding and
    features that are not exactly as large as their stride says mislead it.

    Args:
        feature: the name of the feature to read.
        output_size: height and width of a region's features, in cells.
        stride: of the feature, in pixels.
        sampling_ratio: samples along each side of a cell; 0 for as many as the region has feature cells there.
    """

    def __init__(self, feature: str, output_size: int, stride: int, sampling_ratio: int = 0):
        super().__init__()
        self.feature = feature
        self.output_size = output_size
        self.stride = stride
        self.sampling_ratio = sampling_ratio

    def forward(
        self, features: Mapping[str, Tensor], boxes: list[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return M x C x output_size x output_size for the M boxes (XYXY pixels) of all images."""
        return roi_align(
            features[self.feature],
            boxes,
            self.output_size,
            spatial_scale=1 / self.stride,
            sampling_ratio=self.sampling_ratio,
            aligned=True,
        )
