"""Text, JSON and YAML of users: read whole, or refused in one sentence that names the file.

YAML is read without deciding what a scalar is: ``2024_01_15``, ``1.10`` and ``no`` are a `Scalar` each, with the
characters that stand in the file. Whoever knows what is asked for, a number or a name, turns it into that.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2go_fbnetv5.utils.errors import InputError

# Parsing takes about a second for each of these bytes' millions, and an alias may repeat what it names.
_MOST_YAML_BYTES = 4_000_000
_MOST_YAML_VALUES = 200_000
_TAGS = tuple(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
)
_TEXT = _TAGS[0]
_VARIABLE = re.compile(r"\$([A-Za-z_]|\{)")


@dataclass(frozen=True)
class Scalar:
    """A value as it was written.

    Attributes:
        text: its characters, without quotes.
        quoted: whether quotes or a tag say that it is a text.
    """

    text: str
    quoted: bool = False


def expand_user(path: str | os.PathLike[str]) -> str:
    """Return a path with ``~`` and ``~user`` at its start replaced by the home folder; ``./~`` means the name itself.

    Raises:
        ValueError: there is no such user, or the path has a variable that only a shell would replace.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r}: no file can have this name")
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~"):
        user = expanded.split("/", 1)[0]
        raise InputError(
            f"{path}: there is no user {user[1:]!r}; allowed for a name that begins so: ./{user}"
        )
    if _VARIABLE.search(expanded) and not os.path.lexists(expanded):
        raise InputError(
            f"{path}: its variable is not replaced; allowed: the path itself, ~ for the home folder"
        )
    return expanded


def check_local(what: str, path: str) -> None:
    """Raise an InputError if a path, which `what` names, is a URL: nothing is fetched, and nothing uploaded."""
    if "://" in path:
        raise InputError(
            f"{what} is {path!r}, allowed: a path on this machine, as nothing is downloaded or uploaded"
        )


def read_text(path: str | os.PathLike[str], most_bytes: int | None = None) -> str:
    """Return a file's UTF-8 text, without a byte order mark.

    Args:
        most_bytes: that it may have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or a device, larger than it may be, or no UTF-8.
    """
    file = Path(expand_user(path))
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist")
    size = file.stat().st_size
    if file.is_dir():
        raise InputError(f"{path}: is a folder, a file is needed")
    if not file.is_file():
        raise InputError(f"{path}: is no regular file")
    if most_bytes is not None and size > most_bytes:
        raise InputError(f"{path}: is of {size} bytes, allowed: at most {most_bytes}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, no JSON, has a key twice, is nested too deeply, or holds half a character.
    """
    return parse_json(read_text(path), os.fspath(path))


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a JSON file holds, as `read_json`; anything but an object is a ValueError."""
    content = read_json(path)
    if not isinstance(content, dict):
        found = {list: "a list", str: "a text", type(None): "null"}.get(type(content), repr(content))
        raise InputError(f"{os.fspath(path)}: expected an object of keys and values, found {found}")
    return content


def parse_json(text: str, where: str, halves: bool = False) -> Any:
    """Return what JSON text says; ``where`` it stands is what errors begin with (ValueError, as `read_json`).

    Args:
        halves: half a character is let through, as it stands in names of files that are no UTF-8.
    """
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON, line {error.lineno}: {error.msg}") from error
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None
    except InputError:
        raise
    except ValueError as error:  # an integer of more digits than Python reads
        raise InputError(f"{where}: not JSON that can be read ({error})") from error
    if not halves and re.search(r"\\u[dD][89a-fA-F]", text):
        _require_characters(json.dumps(content, ensure_ascii=False), where)
    return content


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{where}: the key {twice!r} stands twice in one object, allowed: once")
    return content


def _require_characters(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start : error.end]
        raise InputError(f"{where}: {half!r} is half a character, which no UTF-8 text can hold") from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return a YAML file as dicts with texts for keys, lists and `Scalar`; None where it is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, too large, not plain YAML (no tag asks for a Python object), or has a key twice.
    """
    return parse_yaml(read_text(path, _MOST_YAML_BYTES), os.fspath(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return what YAML text says; ``where`` it stands is what errors begin with (ValueError, as `read_yaml`)."""
    _require_characters(text, where)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, where).read(node)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not plain YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Turns nodes of a YAML loader into dicts, lists and scalars."""

    def __init__(self, loader: yaml.SafeLoader, where: str) -> None:
        self.loader, self.where, self.count = loader, where, 0
        self.mappings: set[int] = (
            set()
        )  # that are known to have each key once; an alias names one of them again

    def read(self, node: yaml.Node, key: str = "") -> Any:
        self.count += 1
        if self.count > _MOST_YAML_VALUES:
            raise InputError(f"{self.where}: has more than {_MOST_YAML_VALUES} values, aliases counted")
        if node.tag not in _TAGS:
            line = node.start_mark.line + 1
            raise InputError(f"{self.where}, line {line}: not plain YAML: the tag {node.tag} is not read")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, key) for item in node.value]
        if id(node) not in self.mappings:
            self._require_once(node, key)
            self.loader.flatten_mapping(node)  # "<<: *other"
            self.mappings.add(id(node))
        return {name.value: self.read(value, f"{key}{name.value}.") for name, value in node.value}

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        _require_characters(node.value, f"{self.where}, line {node.start_mark.line + 1}")
        seems = self.loader.resolve(yaml.ScalarNode, node.value, (True, False))
        return Scalar(node.value, node.tag == _TEXT and (node.style is not None or seems != _TEXT))

    def _require_once(self, node: yaml.MappingNode, key: str) -> None:
        lines: dict[str, int] = {}
        for name, _ in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise InputError(f"{self.where}, line {line}: a list or mapping is a key, allowed: a text")
            _require_characters(name.value, f"{self.where}, line {line}")
            if name.value in lines:
                raise InputError(
                    f"{self.where}: the key {key}{name.value} stands twice, in lines {lines[name.value]} and {line}; "
                    "the first would be lost"
                )
            lines[name.value] = line
