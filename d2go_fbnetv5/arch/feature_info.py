"""Describes a backbone's outputs by timm's methods, for whoever builds a head on either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FeatureInfo:
    """The outputs of a backbone: channels, reduction and module of each, with the methods of timm's FeatureInfo.

    Args:
        info: of each output, the finest first, a dict with ``num_chs``, ``reduction`` (pixels of the image per pixel)
            and ``module``.
        out_indices: which of them the backbone gives; all by default.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int] | None = None) -> None:
        self.info = [{**each, "index": index} for index, each in enumerate(info)]
        self.out_indices = tuple(range(len(self.info)) if out_indices is None else out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return a value of the outputs, in a list; ``idx`` names one, or some, of all that there are."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return dicts of some keys, or all; ``idx`` as in `get`."""
        if isinstance(idx, int):
            return {key: self.info[idx][key] for key in keys or self.info[idx]}
        return [
            {key: self.info[i][key] for key in keys or self.info[i]}
            for i in (self.out_indices if idx is None else idx)
        ]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of the outputs; ``idx`` as in `get`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return how many pixels of the image a pixel of the outputs stands for, in either direction."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the names of the modules that the outputs come from."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)
