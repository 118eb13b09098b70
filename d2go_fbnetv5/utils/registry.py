"""Things by name, so that a configuration can choose them and users can add their own."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown

Entry = TypeVar("Entry")
Decorated = TypeVar("Decorated")


class Registry(Generic[Entry]):
    """All things of one kind that are known by name.

    Args:
        kind: what each entry is, for messages, such as "data set".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        self._followers: list[Callable[[str, Entry], Any]] = []

    def add(self, name: str, entry: Entry) -> Entry:
        """Make an entry known by a name, and return it. Raises ValueError if the name is taken."""
        if name in self.entries:
            raise InputError(f"{self.kind} {name!r} is registered already; choose another name")
        self.entries[name] = entry
        for react in self._followers:
            react(name, entry)
        return entry

    def follow(self, react: Callable[[str, Entry], Any]) -> None:
        """Call a function with the name and the entry of all that are known, and from now on of each that is added."""
        self._followers.append(react)
        for name, entry in self.entries.items():
            react(name, entry)

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Return a decorator that makes what it decorates known by a name; a taken one is a ValueError."""

        def register(entry: Any) -> Any:
            return self.add(name, entry)

        return register

    def names(self) -> list[str]:
        """Return the names that are known, sorted."""
        return sorted(self.entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name; one that is not known is a ValueError that lists those that are."""
        if name not in self:
            raise InputError(f"unknown {self.kind} {shown(name)}; allowed are {', '.join(self.names())}")
        return self.entries[name]
