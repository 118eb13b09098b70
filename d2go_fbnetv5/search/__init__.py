"""The search: distributions over topologies and Algorithm 4."""

from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.distribution import ArchDistribution
from d2go_fbnetv5.search.multitask import MultitaskSearch
from d2go_fbnetv5.search.seeding import derive_generator, derive_seed

__all__ = ["ArchDistribution", "CostRegularizer", "MultitaskSearch", "derive_generator", "derive_seed"]
