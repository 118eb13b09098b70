"""Data sets by name, so that a config can choose them, and how they are called with its options."""

from collections.abc import Callable, Mapping
from typing import Any

from d2go_fbnetv5.utils.options import bind_options
from d2go_fbnetv5.utils.registry import Registry

Factory = Callable[..., Any]


def call_with_options(what: str, factory: Factory, options: Mapping[str, Any]) -> Any:
    """Return ``factory(**options)``; options that it lacks, misses or has of another kind are a ValueError.

    Args:
        what: the name of what is made, for messages, such as "data set 'coco'".
    """
    return factory(**bind_options(what, factory, options))


_DATASETS: Registry[Factory] = Registry("data set")


def register_dataset(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a function or class, called with the options of ``build_dataset``, known by ``name``.

    Raises ValueError if the name is taken.
    """
    return _DATASETS.register(name)


def list_datasets() -> list[str]:
    """Return the names of all registered data sets."""
    return _DATASETS.names()


def build_dataset(name: str, /, **options: Any) -> Any:
    """Build the data set of that name: ``len()``, ``[index] -> sample`` and ``.info``.

    Raises ValueError for an unknown name or option, naming those allowed, and whatever opening the set raises.
    """
    return call_with_options(f"data set {name!r}", _DATASETS[name], options)
