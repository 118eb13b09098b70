"""A configuration key as one row of a table: its default, what it may be, and a sentence about it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.utils.errors import InputError


@dataclass(frozen=True)
class Rule:
    """A rule says what a key may be.

    Attributes:
        says: what is allowed, as messages have it; a function where names may yet be registered.
        holds: whether a value is allowed; it is of the default's type, and a list may hold anything.
        texts: whether it is a list of texts.
        path: whether it is a file or folder, in which `~` is the home folder.
    """

    says: str | Callable[[], str]
    holds: Callable[[Any], bool] = lambda value: True
    texts: bool = False
    path: bool = False

    def __str__(self) -> str:
        return self.says if isinstance(self.says, str) else self.says()


@dataclass(frozen=True)
class Key:
    """A key is one row of a table.

    Attributes:
        name: with its groups, such as "SOLVER.MAX_ITER".
        default: its type is that of the key's values; a dict is a group in which the user names the keys (`OPEN`).
        rule: what it may be. A default that is not allowed has to be set.
        text: a sentence.
        readers: the kinds of runs that read it, () for all.
    """

    name: str
    default: Any
    rule: Rule
    text: str
    readers: tuple[str, ...] = ()


Table = Mapping[str, Key]

SWITCH = Rule("True or False")
TEXT = Rule("a text")
TEXTS = Rule("a list of texts", texts=True)
FILE = Rule("a file, or nothing", path=True)
FOLDER = Rule("a folder", lambda value: bool(value) and "\0" not in value, path=True)
OPEN = Rule("a group of options")


def table(rows: Iterable[Key]) -> dict[str, Key]:
    """Return rows by their names."""
    return {row.name: row for row in rows}


def between(
    least: float | None = None,
    most: float | None = None,
    *,
    over: float | None = None,
    below: float | None = None,
) -> Rule:
    """Return the rule of a number in a range: `least` and `most` are allowed themselves, `over` and `below` not."""
    bounds: list[tuple[str, float | None, Callable[[Any, Any], bool]]] = [
        ("{} or more", least, operator.ge),
        ("more than {}", over, operator.gt),
        ("at most {}", most, operator.le),
        ("below {}", below, operator.lt),
    ]
    given = [(says, bound, compare) for says, bound, compare in bounds if bound is not None]
    return Rule(
        " and ".join(
            says.format(bound if isinstance(bound, int) else f"{bound:g}") for says, bound, _ in given
        ),
        lambda value: all(compare(value, bound) for _, bound, compare in given),
    )


def require_each(rule: Rule, whose: str = "", /, **options: Any) -> None:
    """Raise an InputError that names the first option that the rule does not allow; NaN is in no range.

    Args:
        whose: stands after the option's name in the message, such as " of task 'det'".
    """
    for name, value in options.items():
        if not rule.holds(value):
            raise InputError(f"option {name!r}{whose} is {value}, allowed: {rule}")


def one_of(*names: Any) -> Rule:
    """Return the rule of one of some values."""
    return Rule(", ".join(map(str, names)), lambda value: value in names)


def one_known(names: Callable[[], Iterable[str]]) -> Rule:
    """Return the rule of a name that is registered; ``names`` gives those that are by then."""
    return Rule(lambda: ", ".join(names()), lambda value: value in names())


def list_of(says: str, item: Callable[[Any], bool], least: int = 0, most: int | None = None) -> Rule:
    """Return the rule of a list of `least` to `most` items."""

    def holds(values: Sequence[Any]) -> bool:
        return least <= len(values) and (most is None or len(values) <= most) and all(map(item, values))

    return Rule(says, holds)


def get(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def check(cfg: CfgNode, key: str, rule: Rule) -> None:
    """Raise a ValueError unless a rule holds for the key's value."""
    value = get(cfg, key)
    if not rule.holds(value):
        raise InputError(f"{key} is {value!r}, allowed: {rule}")


def add_keys(cfg: CfgNode, rows: Iterable[Key]) -> CfgNode:
    """Add the keys that a configuration, of whatever trainer, does not have yet, with their defaults, in place."""
    node_type = type(cfg)
    for row in rows:
        *groups, last = row.name.split(".")
        node = cfg
        for group in groups:
            if group not in node:
                node[group] = node_type()
            node = node[group]
        if last not in node:
            opened = isinstance(row.default, dict)
            node[last] = node_type(row.default, new_allowed=True) if opened else copy.deepcopy(row.default)
    return cfg
