"""Names of classes, as files and folders give them."""

import logging
import unicodedata
from collections.abc import Iterable
from typing import Any

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown

logger = logging.getLogger(__name__)

_MOST_NAMES = (
    100_000  # a classifier's last layer of as many has 200 million weights; what exceeds it is a slip
)


def checked_names(where: str, names: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of classes, which are texts and, if they can be confused, have been warned of.

    Args:
        where: they come from, for messages, such as "index.json: 'class_names'".

    Raises:
        InputError: ``names`` is a single text or has more than 100000, or one of them is none, is empty, or cannot be
            written as UTF-8.
    """
    if isinstance(names, str):
        raise InputError(f"{where} must be a list of strings, it is {shown(names)}")
    names = tuple(names)
    if len(names) > _MOST_NAMES:
        raise InputError(f"{where} has {len(names)} names, allowed are at most {_MOST_NAMES}")
    first: dict[str, str] = {}
    again = []
    for name in names:
        if not isinstance(name, str) or not name.strip() or not is_utf8(name):
            raise InputError(
                f"{where} must be a list of strings, none of them empty, it has {shown(name)} (a number is a string "
                "in quotes)"
            )
        key = alike(" ".join(name.split()))
        if key in first:
            again.append((first[key], name))
        first.setdefault(key, name)
    if again:
        logger.warning(
            "%s: %d of %d names are like another one, such as %r and %r; they are classes of their own",
            where,
            len(again),
            len(names),
            *again[0],
        )
    return names


def alike(text: str) -> str:
    """Return what texts have in common that differ in capitals or in the form of an accent alone."""
    return unicodedata.normalize("NFC", text).casefold()


def is_utf8(text: str, errors: str = "strict") -> bool:
    """Return whether a text can be written as UTF-8."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True
