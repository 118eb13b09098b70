"""A step's samples, and the parts of them that each have a topology of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.utils.errors import InputError

Sample = Mapping[str, Any]


def stack_images(batch: Sequence[Sample]) -> Tensor:
    """N samples' ``image`` of one size, C x H x W -> N x C x H x W floats."""
    return torch.stack([sample["image"] for sample in batch]).float()


def split(batch: Sequence[Sample], num_parts: int) -> list[Sequence[Sample]]:
    """A batch in parts that differ by one sample at most, in its order.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    if len(batch) < num_parts:
        raise InputError(
            f"a batch of {len(batch)} samples cannot be split into samples_per_rank = {num_parts} parts"
        )
    bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    return [batch[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
