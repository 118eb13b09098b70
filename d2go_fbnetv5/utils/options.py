"""Turns what users write into what is asked for: a number, a switch, a text, or the options of a function.

A configuration keeps a value of an open group (`exact_value`) as a number only where that number is written as the user
wrote it, and as the text itself otherwise. So nothing is lost before `bind_options` looks at what the option is: to one
that is a name ``1.10`` stays ``1.10``, to one that is a number it is 1.1.
"""

from __future__ import annotations

import inspect
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.text_files import Scalar, expand_user, parse_yaml

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*|0x[0-9a-fA-F]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = ("", "null", "Null", "NULL", "None")
_MOST_DIGITS = 400  # no number that means something has more, and Python refuses to read thousands


class MisfitError(InputError):
    """A value is not of the kind that is asked for; the message says which kind is."""


def shown(value: Any) -> str:
    """Return a value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def require(
    content: Mapping[str, Any], key: str, good: Callable[[Any], Any], allowed: str, group: str = ""
) -> Any:
    """Return the value of a key of a file.

    Args:
        good: says whether it is what is ``allowed``.
        group: what stands before the key in messages, such as "tasks.det.".

    Raises:
        InputError: it is missing or no good; names the key, what was found and what is allowed.
    """
    if key not in content:
        raise InputError(f"{group}{key} is missing, allowed is {allowed}")
    if not good(content[key]):
        raise InputError(f"{group}{key} is {shown(content[key])}, allowed is {allowed}")
    return content[key]


def to_integer(value: Any) -> int:
    """Return a whole number within 64 bits, also of its text; MisfitError for anything else, 08 and 1e5 among it."""
    if isinstance(value, str) and _INTEGER.fullmatch(value) and len(value) <= _MOST_DIGITS:
        value = int(value, 16 if "x" in value else 10)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise MisfitError("a whole number")
    value = operator.index(value)
    if not -(2**63) <= value < 2**63:
        raise MisfitError("a whole number of at most 19 digits")
    return value


def to_float(value: Any) -> float:
    """Return a finite number, also of its text; MisfitError for anything else."""
    if isinstance(value, str) and _FLOAT.fullmatch(value) and len(value) <= _MOST_DIGITS:
        value = float(value)
    try:
        number = math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MisfitError("a finite number")
    return number


def to_budget(values: Mapping[str, Any], group: str) -> dict[str, float]:
    """Return the most that something may cost by the costs' names, numbers over 0 or their texts.

    Raises:
        InputError: one is no such number; names it after ``group``, such as "MODEL.FBNETV5.BUDGET.".
    """
    budget = {}
    for name, most in values.items():
        try:
            budget[name] = to_float(most)  # YAML takes 9.0e6 and an argument's 9.0e+6 for a text
        except MisfitError:
            budget[name] = math.nan
        if not budget[name] > 0:
            raise InputError(f"{group}{name} is {most!r}, allowed is a number over 0, such as 9.0e+6")
    return budget


def to_switch(value: Any) -> bool:
    """Return True or False, also of yes, no, on, off, true and false in any case; MisfitError for anything else."""
    if isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    if not isinstance(value, bool):
        raise MisfitError("True or False")
    return value


def to_text(value: Any) -> str:
    """Return a text; MisfitError for a switch, a list or nothing; a name that YAML reads so needs quotes."""
    if value is None or isinstance(value, bool):
        raise MisfitError("a text, in quotes where it is a word such as yes, true or null")
    if not isinstance(value, (str, int, float)):
        raise MisfitError("a text")
    return str(value)


def to_list(value: Any) -> list[Any]:
    """Return a list, also of the text of one, ``[a, b]`` or ``(1, 2)``; MisfitError for anything else."""
    if isinstance(value, str):
        value = parse_list(value)
    if not isinstance(value, (list, tuple)):
        raise MisfitError("a list")
    return list(value)


def parse_list(text: str) -> list[Any] | None:
    """Return the items of ``[a, b]``, ``(1, 2)`` or ``1, 2`` as `exact_value` has them, None where it is no list."""
    items = scalars(text)
    return exact_value(items) if isinstance(items, list) else None


def scalars(text: str) -> Any:
    """Return a list or mapping of one line, as YAML or Python writes it, with `Scalar` in it; else the text."""
    inner = text.strip()
    if inner.startswith("(") and inner.endswith(")"):
        inner = re.sub(
            r"'[^']*'|\"[^\"]*\"|[()]", lambda part: {"(": "[", ")": "]"}.get(part[0], part[0]), inner
        )
    elif inner[:1] not in ("[", "{") and "," in inner:
        inner = f"[{inner}]"
    if inner[:1] not in ("[", "{"):
        return text
    try:
        return parse_yaml(inner, "a list")
    except InputError:
        return text


def plain_value(value: Any) -> Any:
    """Return what a value of `read_yaml` says by itself: numbers, switches and None where they are not quoted."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if not isinstance(value, Scalar):
        return value
    if value.quoted:
        return value.text
    if value.text in _NOTHING or value.text == "~":
        return None
    if value.text.lower() in _SWITCHES:
        return _SWITCHES[value.text.lower()]
    return _number(value.text)


def exact_value(value: Any) -> Any:
    """Return a value of an open group: None and switches as YAML has them, numbers where they are written alike."""
    if isinstance(value, Mapping):
        return {key: exact_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact_value(item) for item in value]
    if not isinstance(value, Scalar) or value.quoted or value.text == "~":
        return value.text if isinstance(value, Scalar) else value
    found = plain_value(value)
    return value.text if isinstance(found, (int, float)) and not _is_exact(found, value.text) else found


def _is_exact(number: float, text: str) -> bool:
    """Return whether a number or switch is written as the text, by Python or in a configuration that was saved."""
    return isinstance(number, bool) or text in (repr(number), yaml.safe_dump(number).split("\n")[0])


def _number(text: str) -> Any:
    for convert in (to_integer, to_float):
        try:
            return convert(text)
        except MisfitError:
            continue
    return text


def bind_options(
    what: str, factory: Callable[..., Any], options: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the options of a configuration as a function or class takes them.

    An option's annotation says what it is, or else its default; where neither does, 1e-4 is a number, and "1" in quotes
    is a text. ``~`` in paths is expanded.

    Args:
        what: is made, for messages, such as "data set 'coco'".
        given: arguments that are no options, as the caller passes them.

    Raises:
        ValueError: an unknown, missing or wrong option; the message names those allowed.
    """
    signature = inspect.signature(factory)
    parameters = {name: p for name, p in signature.parameters.items() if name not in given}
    allowed = ", ".join(str(parameter) for parameter in parameters.values())
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    wrong = [
        name
        for name in options
        if not isinstance(name, str) or name in given or not (takes_any or name in parameters)
    ]
    if wrong:
        raise InputError(f"{what} has no option {wrong[0]!r}; its options are ({allowed})")
    try:
        signature.replace(parameters=list(parameters.values())).bind(**options)
    except TypeError as error:
        raise InputError(f"{what}: {error}; its options are ({allowed})") from None
    kinds = _annotations(factory)
    bound = {}
    for name, value in options.items():
        kind = _kind(parameters[name], kinds.get(name)) if name in parameters else Any
        try:
            found = fit(value, kind)
        except MisfitError as error:
            raise InputError(f"option {name!r} of {what} is {shown(value)}, allowed: {error}") from None
        tuples = name in parameters and isinstance(parameters[name].default, tuple)
        bound[name] = tuple(found) if tuples and isinstance(found, list) else found
    return bound


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    function = getattr(factory, "func", factory)  # of a `functools.partial`
    function = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # of names that are there for type checkers alone
        return {}


def _kind(parameter: inspect.Parameter, annotation: Any) -> Any:
    if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        return Any
    if annotation is not None:
        return annotation
    default = parameter.default
    if default is None or default is inspect.Parameter.empty:
        return Any
    if isinstance(default, (tuple, list)):
        return types.GenericAlias(Sequence, (type(default[0]) if default else Any,))
    return type(default)


def fit(value: Any, kind: Any) -> Any:
    """Return a value of a configuration as an annotation asks for it; MisfitError says what is allowed instead."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _fit_one(value, arguments)
    if origin is typing.Literal:
        chosen = [choice for choice in arguments if value == choice or str(value) == choice]
        if not chosen:
            raise MisfitError(", ".join(map(repr, arguments)))
        return chosen[0]
    if inspect.isclass(kind) and issubclass(kind, (int, float, str)) and kind in _SIMPLE:
        return _SIMPLE[kind](value)
    if kind is type(None):
        if value is None or value in _NOTHING or value == "~":
            return None
        raise MisfitError("nothing")
    if kind in (Path, os.PathLike) or origin is os.PathLike:
        return expand_user(value if isinstance(value, os.PathLike) else to_text(value))
    base = origin or kind
    if inspect.isclass(base) and issubclass(base, Mapping):
        if not isinstance(value, Mapping):
            raise MisfitError("a group of options")
        item = arguments[1] if len(arguments) == 2 else Any
        return {key: fit(each, item) for key, each in value.items()}
    if (
        inspect.isclass(base)
        and base is not Any
        and issubclass(base, Iterable)
        and base.__module__ in _CONTAINERS
    ):
        return _fit_items(value, base, arguments)
    if kind is Any:
        return _untyped(value)
    return value


_CONTAINERS = ("builtins", "collections.abc")


def _text_option(value: Any) -> str:
    text = to_text(value)
    return expand_user(text) if text == "~" or text.startswith("~/") else text


_SIMPLE: dict[type, Callable[[Any], Any]] = {
    bool: to_switch,
    int: to_integer,
    float: to_float,
    str: _text_option,
}


def _fit_one(value: Any, kinds: Sequence[Any]) -> Any:
    """Fit a value to one of several kinds: the one that it is already, else the first that its text can be read as."""
    if value is None and type(None) in kinds:
        return None
    if any(k is type(value) for k in kinds) and not isinstance(value, str):
        return value
    order = sorted(kinds, key=lambda kind: (kind is str, kind in (Path, type(None))))
    problems = []
    for kind in order:
        try:
            return fit(value, kind)
        except MisfitError as error:
            problems.append(str(error))
    raise MisfitError(" or ".join(dict.fromkeys(problems)))


def _fit_items(value: Any, base: type, arguments: Sequence[Any]) -> Any:
    items = to_list(value)
    each = [argument for argument in arguments if argument is not Ellipsis]
    if base is tuple and Ellipsis not in arguments and arguments:
        if len(items) != len(arguments):
            raise MisfitError(f"a list of {len(arguments)} items")
    else:
        each = (each or [Any])[:1] * len(items)
    try:
        fitted = [fit(item, kind) for item, kind in zip(items, each, strict=True)]
    except MisfitError as error:
        raise MisfitError(f"a list, each item {error}") from None
    return tuple(fitted) if base is tuple else fitted


def _untyped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _untyped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_untyped(item) for item in value]
    if not isinstance(value, str):
        return value
    found = _number(value)
    return value if isinstance(found, str) or _is_exact(found, value) else found  # an exact one was in quotes
