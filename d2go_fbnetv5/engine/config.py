"""Reads a configuration: defaults, a YAML file with `_BASE_`, `KEY VALUE` pairs, and clear errors."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.engine.keys import KEYS
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import (
    MisfitError,
    exact_value,
    plain_value,
    scalars,
    shown,
    to_float,
    to_integer,
    to_switch,
)
from d2go_fbnetv5.utils.rules import Rule, Table, add_keys, get
from d2go_fbnetv5.utils.shipped import find_shipped, or_shipped, shipped_configs
from d2go_fbnetv5.utils.text_files import Scalar, expand_user, read_yaml


def get_cfg() -> CfgNode:
    """Return the default configuration of our own trainer."""
    return add_keys(CfgNode(), KEYS.values())


def load_cfg(path: str | Path | None = None, opts: Sequence[str] = (), keys: Table = KEYS) -> CfgNode:
    """Return the defaults, overridden by a YAML file and then by `KEY VALUE` pairs.

    Args:
        path: a file, or the name of a configuration that ships with the package ("search_digits.yaml").
        opts: KEY, VALUE, KEY, VALUE, ...
        keys: those that there are.

    Raises:
        FileNotFoundError: there is no such file, and no such configuration.
        ValueError: it is not YAML, has a key that does not exist, or a value of another type.
    """
    cfg = add_keys(CfgNode(), keys.values())
    if path is not None:
        file = find_config(path)
        for each, values in _with_bases(file):
            try:
                _merge(cfg, values, cfg, keys)
            except InputError as error:
                raise InputError(f"{each}: {error}") from error
        if cfg.IMPORTS:
            cfg.IMPORT_FOLDERS = [*cfg.IMPORT_FOLDERS, str(file.absolute().parent)]
    _merge(cfg, _nested(opts), cfg, keys)
    _expand_paths(cfg, keys)
    import_modules(cfg)
    return cfg


def _expand_paths(cfg: CfgNode, keys: Table) -> None:
    """Replace `~` and `~user` in the keys that are paths, in place; options are expanded where they are used.

    Raises:
        ValueError: names the key and the user that there is not.
    """
    for key in (name for name, row in keys.items() if row.rule.path):
        group, _, last = key.rpartition(".")
        node = get(cfg, group) if group else cfg
        try:
            node[last] = expand_user(node[last])
        except InputError as error:
            raise InputError(f"{key} is {error}") from error


def find_config(path: str | Path) -> Path:
    """Find a file by its path, or a shipped configuration by its name.

    Raises:
        FileNotFoundError: it names the configurations that exist.
    """
    path = Path(or_shipped(expand_user(path)))
    if not path.is_file():
        raise FileNotFoundError(
            f"--config-file {path} is neither a file nor a shipped configuration ({', '.join(shipped_configs())})"
        )
    return path


def _with_bases(file: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Read a YAML file and those that it builds on, each with its values; the one that all others override is first."""
    chain: list[tuple[Path, Mapping[str, Any]]] = []
    while True:
        values = read_yaml(file)
        if not isinstance(values, dict):
            found = (
                "nothing" if values is None else "a list" if isinstance(values, list) else "a single value"
            )
            raise InputError(f"{file}: expected a mapping of keys to values, found {found}")
        base = values.pop("_BASE_", None)
        chain.insert(0, (file, values))
        if base is None:
            return chain
        file = _find_base(file, base)
        if any(file.resolve() == other.resolve() for other, _ in chain):
            circle = " -> ".join(str(name) for name, _ in reversed(chain))
            raise InputError(f"_BASE_ goes in a circle: {circle} -> {file}")


def _find_base(file: Path, base: Any) -> Path:
    """Find the file that a `_BASE_` names: one beside the file, or else a shipped configuration."""
    if not isinstance(base, Scalar) or not base.text:
        raise InputError(f"{file}: _BASE_ is {shown(plain_value(base))}, allowed: the name of one YAML file")
    path = Path(expand_user(base.text))
    beside = file.parent / path
    if beside.is_dir():
        raise InputError(f"{file}: _BASE_ names {beside}, which is a folder, allowed: a YAML file")
    found = beside if beside.is_file() else find_shipped(path)
    if found is None:
        raise FileNotFoundError(
            f"{file}: _BASE_ names {base.text}, which is neither a file beside it nor a shipped configuration "
            f"({', '.join(shipped_configs())})"
        )
    return found


def _nested(opts: Sequence[str]) -> dict[str, Any]:
    """`KEY VALUE` pairs as a file would have them; what is in quotes is a text."""
    if len(opts) % 2:
        raise InputError(f"overrides are KEY VALUE pairs, but {opts[-1]!r} has no value")
    values: dict[str, Any] = {}
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        try:
            f"{key} {text}".encode()
        except UnicodeEncodeError:
            raise InputError(f"{key!r} {text!r}: is no UTF-8") from None
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{key}: {parent} is given a value and keys below it at once")
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        node[last] = Scalar(text[1:-1] if quoted else text, quoted or not text)
    return values


def _merge(node: CfgNode, values: Mapping[str, Any], root: CfgNode, keys: Table, prefix: str = "") -> None:
    """Override values of a group in place.

    Args:
        values: of `read_yaml`, or plain ones.
        root: the whole configuration.
        prefix: the group's name with a dot.

    Raises:
        ValueError: names the key, what was found, and what is allowed.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if node.is_new_allowed():
            _set_free(node, key, value, root, name)
        elif key not in node and "." in key:
            raise InputError(
                f"{name} has a dot, as on the command line; in a file a key stands in its group, as in SOLVER: "
                "{MAX_ITER: 5}"
            )
        elif key not in node:
            raise InputError(f"unknown key {name}{_suggestion(name, root)}")
        elif isinstance(node[key], CfgNode):
            value = scalars(value.text) if isinstance(value, Scalar) else value
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is a group of keys, found the value {shown(plain_value(value))}")
            _merge(node[key], value, root, keys, f"{name}.")
        else:
            try:
                node[key] = _of_type(value, node[key], keys[name].rule)
            except MisfitError as error:
                raise InputError(
                    f"{name} is {shown(_written(value))}, allowed: {error}, such as {node[key]!r}"
                ) from None


def _set_free(node: CfgNode, key: str, value: Any, root: CfgNode, name: str) -> None:
    """Set a key of an open group, whose type is known where it is used."""
    if isinstance(value, Scalar) and not value.quoted and value.text[:1] in ("[", "{"):
        value = scalars(value.text)  # of a command line
    if not isinstance(value, Mapping):
        node[key] = exact_value(value)
        return
    if not isinstance(node.get(key), CfgNode):
        node[key] = type(node)(new_allowed=True)
    _merge(node[key], value, root, {}, f"{name}.")


_KINDS = {str: "a text", bool: "True or False", int: "a whole number", float: "a finite number"}
_CONVERT = {bool: to_switch, int: to_integer, float: to_float}


def _of_type(value: Any, default: Any, rule: Rule) -> Any:
    """`value` as the type of `default`; a whole number may stand for a float, and for a list of one."""
    if isinstance(default, (list, tuple)):
        return type(default)(_items(value, default, rule))
    if isinstance(value, (list, tuple, Mapping)):
        raise MisfitError(_KINDS[type(default)])
    return _text(value) if isinstance(default, str) else _CONVERT[type(default)](_written(value))


def _text(value: Any) -> str:
    """Return the very characters; an empty value is none, and null is left to quotes to be a name."""
    if isinstance(value, Scalar):
        if not value.quoted and value.text.lower() == "null":
            raise MisfitError("a text ('' for none, 'null' in quotes)")
        return value.text
    if not isinstance(value, str):
        raise MisfitError("a text")
    return value


def _items(value: Any, default: Sequence[Any], rule: Rule) -> list[Any]:
    value = scalars(value.text) if isinstance(value, Scalar) else value
    if isinstance(value, (str, int)) and default and type(default[0]) is int:
        value = [to_integer(value)]
    if not isinstance(value, (list, tuple)):
        raise MisfitError("a list")
    if rule.texts:
        return [_text(item) for item in value]
    return plain_value(value)


def _written(value: Any) -> Any:
    """Return a scalar's text; whatever else it is as it is."""
    return value.text if isinstance(value, Scalar) else plain_value(value)


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _suggestion(name: str, root: CfgNode) -> str:
    keys = [key for key in _all_keys(root) if not name.startswith(f"{key}.")]
    close = difflib.get_close_matches(name, keys, n=1)
    if not close:
        last = name.rsplit(".", 1)[-1]
        close = [key for key in keys if key.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {close[0]}?" if close else ""


def as_dict(node: CfgNode) -> dict[str, Any]:
    """Return a group of keys as plain dicts, such as the options of a head."""
    return {key: as_dict(value) if isinstance(value, CfgNode) else value for key, value in node.items()}
