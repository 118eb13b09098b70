"""Searched backbones among timm's models, so that whatever builds on timm's features can build on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from d2go_fbnetv5.arch import Backbone
from d2go_fbnetv5.arch.families import PATHS
from d2go_fbnetv5.arch.feature_info import FeatureInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra
from d2go_fbnetv5.zoo import create_backbone


class FeatureList(nn.Module):
    """A backbone gives a list of features here, like timm's models with ``features_only``.

    Args:
        backbone: with all four paths.
        out_indices: which of its outputs are given; negative ones count from the end.

    Attributes:
        feature_info: of the backbone; its ``channels()`` and ``reduction()`` are those of the list.
    """

    def __init__(self, backbone: Backbone, out_indices: Sequence[int]) -> None:
        super().__init__()
        count = len(backbone.outputs)
        if not all(-count <= index < count for index in out_indices):
            raise InputError(f"out_indices is {tuple(out_indices)}, allowed are {-count} to {count - 1}")
        self.backbone = backbone
        self.feature_info = FeatureInfo(backbone.feature_info.info, [i % count for i in out_indices])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map N x 3 x H x W, RGB in 0..1 normalised by ImageNet's means and deviations, to the features."""
        features = list(self.backbone(images).values())
        return [features[index] for index in self.feature_info.out_indices]


def register_timm_model(
    name: str,
    run: str | os.PathLike[str],
    task: str,
    topology: str | os.PathLike[str] | None = None,
    budget: Mapping[str, float] | None = None,
) -> None:
    """Make the network that a search found known to timm, for ``timm.create_model(name, features_only=True)``.

    With ``pretrained=True`` it has the supernet's weights. Its features are those of the four paths, of 1/4 to 1/32 of
    an image's sides. Libraries that take timm's models by name have it then, too: "tu-" and the name in
    segmentation-models-pytorch.

    Args:
        name: that timm has none of its own by; one of ours is replaced.
        run, task, topology, budget: as `create_backbone` takes them.

    Raises:
        InputError: timm is not installed, the name is taken, or as `create_backbone`; FileNotFoundError likewise.
    """
    timm = require_extra("register_timm_model", "timm", "distillation")
    if timm.is_model(name) and name not in _MADE:
        raise InputError(f"name is {name!r}, which timm has a model of its own by; allowed: another one")
    make = partial(create_backbone, run, task, topology=topology, budget=budget)
    make(pretrained=False)  # what is wrong comes up here
    if name not in _MADE:

        def build(pretrained: bool = False, **options: Any) -> FeatureList:
            return _build(name, pretrained, options)

        build.__name__ = name
        timm.models.register_model(build)
    _MADE[name] = make


# By the names that timm has them by.
_MADE: dict[str, Callable[..., Backbone]] = {}
# Of timm's options, what a backbone can be.
_ALLOWED = {
    "features_only": (True,),
    "in_chans": (None, 3),
    "output_stride": (None, 32),
}


def _build(name: str, pretrained: bool, options: Mapping[str, Any]) -> FeatureList:
    for key, values in _ALLOWED.items():
        if options.get(key) not in values:
            raise InputError(f"{name}: {key} is {options.get(key)!r}, allowed: {values[-1]}")
    indices = options.get("out_indices", len(PATHS))
    return FeatureList(
        _MADE[name](pretrained=pretrained), range(-indices, 0) if isinstance(indices, int) else indices
    )
