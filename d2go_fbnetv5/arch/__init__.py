"""The search space: blocks, families, topologies, the supernet and what they cost."""

from d2go_fbnetv5.arch.cost import BlockCosts, block_costs
from d2go_fbnetv5.arch.families import PATHS, Family, build_family, list_families, register_family
from d2go_fbnetv5.arch.fusion import Fusion
from d2go_fbnetv5.arch.supernet import Backbone, Supernet
from d2go_fbnetv5.arch.topology import Topology

__all__ = [
    "PATHS",
    "Backbone",
    "BlockCosts",
    "Family",
    "Fusion",
    "Supernet",
    "Topology",
    "block_costs",
    "build_family",
    "list_families",
    "register_family",
]
