"""D2Go's configuration with our keys, and how they scale with the number of processes."""

from d2go.config.config import CONFIG_CUSTOM_PARSE_REGISTRY, CONFIG_SCALING_METHOD_REGISTRY
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.keys import OPEN_GROUPS
from d2go_fbnetv5.engine.validate import scale_search_to_world_size
from d2go_fbnetv5.plugins.detectron2.config import add_fbnetv5_config, use_lite_rcnn


@CONFIG_SCALING_METHOD_REGISTRY.register()
def scale_fbnetv5_configs(cfg: CfgNode, new_world_size: int) -> None:
    """Scale what D2Go's own rule leaves alone: the search's iterations, and the period of checkpoints."""
    scale = new_world_size / cfg.SOLVER.REFERENCE_WORLD_SIZE
    scale_search_to_world_size(cfg, scale)
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, round(cfg.SOLVER.CHECKPOINT_PERIOD / scale))


@CONFIG_CUSTOM_PARSE_REGISTRY.register()
def open_groups_stay_open(cfg: CfgNode, is_dump: bool) -> None:
    """Let a group of options that a file has begun get further ones on the command line, as in our own training."""
    for name in OPEN_GROUPS:
        node = cfg
        for key in name.split("."):
            node = node.get(key, {})  # D2Go also comes with parts of a configuration
        if node:
            node.set_new_allowed(True)


def extend_config(cfg: CfgNode) -> CfgNode:
    """Add our keys to D2Go's defaults, in place; a key that our own trainer has too gets the default it has there."""
    add_fbnetv5_config(cfg)
    use_lite_rcnn(cfg)
    cfg.RCNN_PREPARE_FOR_EXPORT = "fbnetv5_rcnn_prepare_for_export"
    cfg.RCNN_PREPARE_FOR_QUANT = "fbnetv5_rcnn_prepare_for_quant"
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.SOLVER.AUTO_SCALING_METHODS = [*cfg.SOLVER.AUTO_SCALING_METHODS, scale_fbnetv5_configs.__name__]
    return cfg
