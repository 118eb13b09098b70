"""DETR's transformer decoder, by default of one layer, on Path 3 (Appendix G.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.utils.errors import InputError


class Attention(nn.Module):
    """Multi-head attention with separate projections: N x Q x D, N x K x D -> N x Q x D.

    Written out, rather than ``nn.MultiheadAttention``, because that one does not export with a dynamic K.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"dim is {dim}; allowed is a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None) -> Tensor:
        """``valid``, N x K booleans with at least one True a row: the keys that may be looked at."""
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        mask = None if valid is None else valid[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the image, feed-forward; norms come after (DETR's default)."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, num_heads, dropout)
        self.cross_attention = Attention(dim, num_heads, dropout)
        self.expand = nn.Linear(dim, feedforward_dim)
        self.project = nn.Linear(feedforward_dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, key_position: Tensor, valid: Tensor | None
    ) -> Tensor:
        """``x`` and its positions N x Q x D, ``memory`` and its positions N x K x D -> N x Q x D."""
        x = self.attend_queries(x, query_position)
        keys = memory + key_position
        y = self.cross_attention(x + query_position, keys, memory, valid)
        x = self.norms[1](x + self.dropout(y))
        y = self.project(self.dropout(F.relu(self.expand(x))))
        return self.norms[2](x + self.dropout(y))

    def attend_queries(self, x: Tensor, query_position: Tensor) -> Tensor:
        """Run the self-attention part. In a decoder's first layer its inputs are weights only, so its output is a
        constant, which an exporter can fold."""
        queries = x + query_position
        return self.norms[0](x + self.dropout(self.self_attention(queries, queries, x)))


class TransformerDecoder(nn.Module):
    """Learned queries gather what an image shows: N x C x h x w -> per layer N x ``num_queries`` x ``dim``.

    Args:
        in_channels: of the feature, which a 1 x 1 convolution projects to ``dim``.
        num_queries: segments that can be predicted.
        dim: of queries and keys, a multiple of ``num_heads`` and of 4.
        feedforward_dim: hidden units of the feed-forward part.
        num_layers: the paper's Lite MaskFormer has 1.
        dropout: probability in attention and feed-forward.
    """

    def __init__(
        self,
        in_channels: int,
        num_queries: int = 100,
        dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise InputError(f"num_layers is {num_layers}; allowed is 1 or more")
        self.input_projection = nn.Conv2d(in_channels, dim, 1)
        # DETR has no norm here, for its backbone's features are of about unit size. Those of a fused path are some
        # ten times larger, how much depends on the topology, and would saturate the first attention.
        self.input_norm = nn.LayerNorm(dim)
        self.queries = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, feedforward_dim, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        for name, parameter in self.layers.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the normed queries after each layer, the last being the result.

        Args:
            feature: N x C x h x w.
            valid: N x h x w booleans, False where the image was padded; None if nowhere. Padding is neither
                looked at nor counted in the positions. Each image has at least one True.
        """
        projected = self.input_projection(feature)
        position = sine_positions(
            torch.ones_like(projected[:, 0], dtype=torch.bool) if valid is None else valid, projected.shape[1]
        )
        memory = self.input_norm(projected.flatten(2).transpose(1, 2))
        position = position.to(memory.dtype).flatten(2).transpose(1, 2)
        keys_valid = None if valid is None else valid.flatten(1)
        query_position = self.queries.weight.expand(len(feature), -1, -1)
        x = torch.zeros_like(query_position)
        outputs = []
        for layer in self.layers:
            x = layer(x, query_position, memory, position, keys_valid)
            outputs.append(self.norm(x))
        return outputs


def sine_positions(valid: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """DETR's sine embedding of positions: N x h x w booleans -> N x ``dim`` x h x w, y in the first half.

    Positions run over 0..2 pi from the first to the last valid row and column, whatever the padding.
    """
    pairs = dim // 4
    frequency = temperature ** (torch.arange(pairs, device=valid.device, dtype=torch.float32) / pairs)
    halves = []
    for axis in (1, 2):
        count = valid.to(torch.float32).cumsum(axis)
        last = count.amax(axis, keepdim=True).clamp(min=1)
        angle = (2 * math.pi * count / last)[..., None] / frequency  # N x h x w x pairs
        halves.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(3))
    return torch.cat(halves, dim=3).permute(0, 3, 1, 2)
