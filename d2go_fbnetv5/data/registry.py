"""Data sets by name, so that a config can choose them."""

import inspect
from collections.abc import Callable
from typing import Any

_FACTORIES: dict[str, Callable[..., Any]] = {}


def register_dataset(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: makes a function or class, called with the options of ``build_dataset``, known by ``name``.

    Raises ValueError if the name is taken.
    """

    def add(factory: Callable[..., Any]) -> Callable[..., Any]:
        if name in _FACTORIES:
            raise ValueError(f"a data set named {name!r} is registered already")
        _FACTORIES[name] = factory
        return factory

    return add


def list_datasets() -> list[str]:
    return sorted(_FACTORIES)


def build_dataset(name: str, **options: Any) -> Any:
    """The data set of that name: ``len()``, ``[index] -> sample`` and ``.info``.

    Raises ValueError for an unknown name or option, naming those allowed, and whatever opening the set raises.
    """
    if name not in _FACTORIES:
        raise ValueError(f"there is no data set named {name!r}, registered are {', '.join(list_datasets())}")
    factory = _FACTORIES[name]
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        allowed = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise ValueError(f"data set {name!r}: {error}; its options are ({allowed})") from None
    return factory(**options)
