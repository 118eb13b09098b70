"""The supernet and the searched network as Detectron2 backbones, alone and under its FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling import Backbone as DetectronBackbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from d2go_fbnetv5.arch import PATHS, Backbone, Family, Supernet, Topology
from d2go_fbnetv5.plugins.detectron2.config import configured_topology
from d2go_fbnetv5.plugins.detectron2.convert import require_whole
from d2go_fbnetv5.plugins.detectron2.deploy import ScriptableBackbone, enlarge
from d2go_fbnetv5.utils.errors import InputError


class _PathBackbone(DetectronBackbone):
    """Answers from ``channels`` and ``strides`` what Detectron2 asks of a backbone."""

    channels: dict[str, int]
    strides: dict[str, int]

    @property
    def size_divisibility(self) -> int:
        return 32

    @property
    def _out_features(self) -> list[str]:
        return list(self.channels)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=self.strides[name])
            for name, channels in self.channels.items()
        }


@BACKBONE_REGISTRY.register()
class FBNetV5Supernet(Supernet, _PathBackbone):
    """The supernet; without a topology all of its blocks run. Features ``path0`` to ``path3``."""

    @configurable
    def __init__(self, family: str | Family, num_stages: int) -> None:
        super().__init__(family, num_stages)
        require_whole(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {"family": cfg.MODEL.FBNETV5.FAMILY, "num_stages": cfg.MODEL.FBNETV5.NUM_STAGES}

    def forward(self, images: Tensor, topology: Topology | None = None) -> dict[str, Tensor]:
        """Map N x 3 x H x W, normalised -> N x C x about H/stride x W/stride by name."""
        return super().forward(images, topology or Topology.full(self.num_stages))


@BACKBONE_REGISTRY.register()
class FBNetV5Backbone(Backbone, _PathBackbone):
    """The searched network of MODEL.FBNETV5.TOPOLOGY. Its weights have the supernet's names.

    Args:
        family: name of a family, or the family.
        topology: need not be pruned.
        outputs: of "path0" to "path3".
        exact_sizes: features are enlarged, at the right and bottom, to the input's size over their stride, which
            FPN needs. Some families' paddings leave them a cell smaller.
    """

    @configurable
    def __init__(
        self,
        family: str | Family,
        topology: Topology,
        outputs: Sequence[str] = PATHS,
        exact_sizes: bool = False,
    ) -> None:
        super().__init__(family, topology, outputs)
        self.exact_sizes = exact_sizes
        require_whole(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, exact_sizes: bool = False) -> dict[str, Any]:
        return {
            "family": cfg.MODEL.FBNETV5.FAMILY,
            "topology": configured_topology(cfg),
            "outputs": cfg.MODEL.FBNETV5.OUT_FEATURES,
            "exact_sizes": exact_sizes,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map N x 3 x H x W, normalised -> N x C x about H/stride x W/stride by name."""
        features = super().forward(images)
        if not self.exact_sizes:
            return features
        return {name: enlarge(feature, images, self.strides[name]) for name, feature in features.items()}

    def __prepare_scriptable__(self) -> ScriptableBackbone:
        return ScriptableBackbone(self, self.exact_sizes)


@BACKBONE_REGISTRY.register()
def build_fbnetv5_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's FPN on MODEL.FPN.IN_FEATURES of the searched network; "p6" by max pooling."""
    return _fpn(cfg, FBNetV5Backbone(cfg, input_shape, exact_sizes=True), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_fbnetv5_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with RetinaNet's two further levels, "p6" and "p7"; they read Path 3, which must be an input."""
    bottom_up = FBNetV5Backbone(cfg, input_shape, exact_sizes=True)
    if "path3" not in bottom_up.channels:
        raise InputError("MODEL.FBNETV5.OUT_FEATURES must have path3, which RetinaNet's p6 is made from")
    top = LastLevelP6P7(bottom_up.channels["path3"], cfg.MODEL.FPN.OUT_CHANNELS, in_feature="path3")
    return _fpn(cfg, bottom_up, top)


def _fpn(cfg: CfgNode, bottom_up: FBNetV5Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
