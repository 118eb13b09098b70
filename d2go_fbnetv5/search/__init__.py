"""The search: distributions over topologies, Algorithms 1 to 4, and random search."""

from d2go_fbnetv5.search.addition import AdaptingSearch, AdditionSearch
from d2go_fbnetv5.search.algorithms import ALGORITHMS, MultitaskSearch
from d2go_fbnetv5.search.base import Search
from d2go_fbnetv5.search.cost import CostRegularizer
from d2go_fbnetv5.search.decide import Decision, Limit, decide
from d2go_fbnetv5.search.distribution import ArchDistribution
from d2go_fbnetv5.utils.seeding import derive_generator, derive_seed

__all__ = [
    "ALGORITHMS",
    "AdaptingSearch",
    "AdditionSearch",
    "ArchDistribution",
    "CostRegularizer",
    "Decision",
    "Limit",
    "MultitaskSearch",
    "Search",
    "decide",
    "derive_generator",
    "derive_seed",
]
