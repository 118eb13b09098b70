"""Reading a configuration: defaults, a YAML file with `_BASE_`, `KEY VALUE` pairs, and clear errors."""

import difflib
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.defaults import add_fbnetv5_config, detectron2_config
from d2go_fbnetv5.utils.errors import InputError


def get_cfg() -> CfgNode:
    """The default configuration of this host."""
    cfg = detectron2_config()
    add_fbnetv5_config(cfg)
    return cfg


def load_cfg(
    path: str | Path | None = None, opts: Sequence[str] = (), defaults: Callable[[], CfgNode] = get_cfg
) -> CfgNode:
    """The defaults, overridden by a YAML file and then by `KEY VALUE` pairs.

    Args:
        path: a file, or the name of a recipe that ships with the package ("search_digits.yaml").
        opts: KEY, VALUE, KEY, VALUE, ...
        defaults: gives the keys that there are.

    Raises:
        FileNotFoundError: there is no such file, and no such recipe.
        ValueError: it is not YAML, has a key that does not exist, or a value of another type.
    """
    cfg = defaults()
    if path is not None:
        file = find_config(path)
        try:
            merge(cfg, _read_yaml(file))
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    merge(cfg, _nested(opts))
    return cfg


def find_config(path: str | Path) -> Path:
    """A file by its path, or a shipped recipe by its name.

    Raises:
        FileNotFoundError: it names the recipes that exist.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    shipped = _shipped_folder()
    if not path.is_absolute():
        # `configs/search.yaml` is what one types in a checkout; elsewhere it means the shipped recipe.
        name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
        if (shipped / name).is_file():
            return shipped / name
    files = (file for file in shipped.rglob("*.yaml") if not file.name.startswith("_"))
    names = ", ".join(sorted(str(file.relative_to(shipped)) for file in files))
    raise FileNotFoundError(f"--config-file {path} is neither a file nor a shipped recipe ({names})")


def _shipped_folder() -> Path:
    # In a checkout the recipes lie beside the package, in an installed one inside it.
    package = Path(str(resources.files("d2go_fbnetv5")))
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = CfgNode.load_yaml_with_base(str(file), allow_unsafe=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: _BASE_ names {error.filename}, which does not exist") from error
    except yaml.YAMLError as error:
        raise InputError(f"not plain YAML: {' '.join(str(error).split())}") from error
    except (AssertionError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"not a mapping of keys to values ({error})") from error
    if not isinstance(values, Mapping):
        raise InputError(f"expected a mapping of keys to values, found {type(values).__name__}")
    return values


def _nested(opts: Sequence[str]) -> dict[str, Any]:
    if len(opts) % 2:
        raise InputError(f"overrides are KEY VALUE pairs, but {opts[-1]!r} has no value")
    values: dict[str, Any] = {}
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{key}: {parent} is given a value and keys below it at once")
        node[last] = _literal(value)
    return values


def merge(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Override values of `cfg` in place.

    Raises:
        ValueError: names the key, what was found, and what is allowed.
    """
    _merge(cfg, values, cfg, "")


def _merge(node: CfgNode, values: Mapping[str, Any], root: CfgNode, prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in node:
            if not node.is_new_allowed():
                raise InputError(f"unknown key {name}{_suggestion(name, root)}")
            node[key] = _new_value(value, type(node))
        elif isinstance(node[key], CfgNode):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is a group of keys, found the value {value!r}")
            _merge(node[key], value, root, f"{name}.")
        else:
            node[key] = _coerce(name, value, node[key])


def _new_value(value: Any, node_type: type[CfgNode]) -> Any:
    if not isinstance(value, Mapping):
        return _literal(value)
    node = node_type(new_allowed=True)
    for key, child in value.items():
        node[key] = _new_value(child, node_type)
    return node


def _coerce(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`; whole numbers may stand for floats, lists for tuples."""
    if isinstance(default, str):
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    else:
        value = _literal(value)
        if type(value) is type(default):
            return value
        if isinstance(default, float) and type(value) is int:
            return float(value)
        if isinstance(default, tuple) and isinstance(value, (list, int)):
            return tuple(value) if isinstance(value, list) else (value,)
        if isinstance(default, list) and isinstance(value, tuple):
            return list(value)
    raise InputError(
        f"{name} must be of type {type(default).__name__} (such as {default!r}), found {value!r}"
    )


def _literal(value: Any) -> Any:
    # YAML reads 1e-4 as text, and so is everything on a command line.
    if not isinstance(value, str):
        return value
    try:
        return literal_eval(value)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(value.lower(), value)


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
    """A group of keys as plain dicts, such as the options of a head."""
    return {key: as_dict(value) if isinstance(value, CfgNode) else value for key, value in node.items()}
