"""Packages that a format needs and the installation may lack."""

from __future__ import annotations

import importlib

from d2go_fbnetv5.utils.errors import InputError


def require(name: str, *packages: str) -> None:
    """Imports packages.

    Args:
        name: of the format, for the message.

    Raises:
        ValueError: one cannot be imported; the message has pip's line.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"the format {name} needs {package}: pip install 'd2go_fbnetv5[export]' ({error})"
            ) from error
