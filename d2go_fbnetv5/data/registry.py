"""Data sets by name, so that a config can choose them, and the registry that other plugins use as well."""

from collections.abc import Callable, Mapping
from typing import Any

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options

Factory = Callable[..., Any]


class Registry:
    """Functions and classes by name, called with options of a configuration.

    Args:
        kind: what they make, for messages, such as "data set".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Factory] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator: makes a function or class known by ``name``. Raises ValueError if the name is taken."""

        def add(factory: Factory) -> Factory:
            if name in self._factories:
                raise InputError(f"a {self.kind} named {name!r} is registered already")
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        return sorted(self._factories)

    def __getitem__(self, name: str) -> Factory:
        if not isinstance(name, str) or name not in self._factories:
            raise InputError(
                f"there is no {self.kind} named {name!r}, registered are {', '.join(self.names())}"
            )
        return self._factories[name]


def call_with_options(what: str, factory: Factory, options: Mapping[str, Any]) -> Any:
    """Return ``factory(**options)``; options that it lacks, misses or has of another kind are a ValueError.

    Args:
        what: the name of what is made, for messages, such as "data set 'coco'".
    """
    return factory(**bind_options(what, factory, options))


_DATASETS = Registry("data set")


def register_dataset(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a function or class, called with the options of ``build_dataset``, known by ``name``.

    Raises ValueError if the name is taken.
    """
    return _DATASETS.register(name)


def list_datasets() -> list[str]:
    return _DATASETS.names()


def build_dataset(name: str, /, **options: Any) -> Any:
    """The data set of that name: ``len()``, ``[index] -> sample`` and ``.info``.

    Raises ValueError for an unknown name or option, naming those allowed, and whatever opening the set raises.
    """
    return call_with_options(f"data set {name!r}", _DATASETS[name], options)
