"""Our mapper by name, for D2GO_DATA.MAPPER.NAME of D2Go's own runners."""

from typing import Any

from d2go.data.dataset_mappers.build import D2GO_DATA_MAPPER_REGISTRY
from fvcore.common.config import CfgNode

from d2go_fbnetv5.plugins.detectron2.datasets import SampleMapper


@D2GO_DATA_MAPPER_REGISTRY.register()
def FBNetV5DatasetMapper(cfg: CfgNode, is_train: bool, **_: Any) -> SampleMapper:  # noqa: N802 (D2Go's names)
    """Of samples of the multitask (pseudo-labelled) format and all other sets of FBNETV5_DATA.

    D2Go's transforms are not used: a sample's label map and boxes go through one transform with its image.
    """
    return SampleMapper.from_config(cfg, is_train)
