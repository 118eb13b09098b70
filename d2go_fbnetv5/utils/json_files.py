"""JSON files that a user may have edited, cut or swapped: read with errors that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from d2go_fbnetv5.utils.errors import InputError


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is a folder, no text, no JSON, or nested beyond what Python reads.
    """
    where = os.fspath(path)
    if os.path.isdir(where):
        raise InputError(f"{where}: is a folder; expected a JSON file")
    try:
        return json.loads(Path(where).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{where} does not exist") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON, line {error.lineno}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # thousands of levels, or a number of thousands of digits
        raise InputError(f"{where}: not a JSON file that can be read ({error})") from error


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As `read_json`; anything but an object is an InputError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{os.fspath(path)}: expected an object of keys and values, found {_kind(content)}")
    return content


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), repr(value))
