"""The search algorithms by name."""

from __future__ import annotations

from d2go_fbnetv5.search.base import Search
from d2go_fbnetv5.search.multitask import MultitaskSearch
from d2go_fbnetv5.search.per_task import PerTaskSearch, SingleTaskSearch
from d2go_fbnetv5.search.random import RandomSearch
from d2go_fbnetv5.search.shared_forward import SharedForwardSearch
from d2go_fbnetv5.utils.errors import InputError

ALGORITHMS: dict[str, type[Search]] = {
    "multitask": MultitaskSearch,
    "single_task": SingleTaskSearch,
    "per_task_forward": PerTaskSearch,
    "shared_forward": SharedForwardSearch,
    "random": RandomSearch,
}


def search_class(name: str) -> type[Search]:
    """The class of a search algorithm; an unknown name is a ValueError that lists those known."""
    if name not in ALGORITHMS:
        raise InputError(f"search algorithm {name!r}, allowed: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
