"""Lite MaskFormer's pixel decoder: per-pixel embeddings from Path 1 (Appendix G.1)."""

from torch import Tensor, nn


class PixelDecoder(nn.Module):
    """One 3 x 3 convolution with GroupNorm: N x C x h x w -> N x ``mask_dim`` x h x w.

    No activation follows, for an embedding's dot product with a mask embedding has either sign.
    """

    def __init__(self, in_channels: int, mask_dim: int = 256, num_groups: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, mask_dim, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(num_groups, mask_dim)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, feature: Tensor) -> Tensor:
        return self.norm(self.conv(feature))
