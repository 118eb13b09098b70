"""Packages that the installation may lack, for they are none of our requirements."""

import importlib
from types import ModuleType

from d2go_fbnetv5.utils.errors import InputError


def require_extra(what: str, module: str, extra: str = "") -> ModuleType:
    """Import a module.

    Args:
        what: needs it, for the message, such as "the format onnx".
        module: its full name; the package that pip knows has the name of its first part.
        extra: of this package's extras, the one that installs it; none for a package that only a user's own code needs.

    Raises:
        InputError: it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = f"'d2go_fbnetv5[{extra}]'" if extra else module.split(".")[0]
        raise InputError(f"{what} needs {module}: pip install {package} ({error})") from error
