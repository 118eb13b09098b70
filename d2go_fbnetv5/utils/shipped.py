"""The files that come with the package: configurations with the weights that some start from, and trained models."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("d2go_fbnetv5")))


def pretrained_folder() -> Path:
    """Return the folder of the trained models that come with the package, one folder for each."""
    return _PACKAGE / "pretrained"


def shipped_folder() -> Path:
    """Return the folder of the configurations: beside the package in a checkout, inside it where it is installed."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_shipped(path: str | os.PathLike[str]) -> Path | None:
    """Return the shipped file of a name, None if there is none.

    ``configs/search.yaml`` is what one types in a checkout, and means the same elsewhere.
    """
    path = Path(path)
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    file = shipped_folder() / name
    return file if not path.is_absolute() and file.is_file() else None


def or_shipped(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path as it is; where there is no such file, the shipped one of that name if there is one."""
    return path if os.path.isfile(path) else find_shipped(path) or path


def shipped_configs() -> list[str]:
    """Return the names of the configurations, without those that others build on."""
    folder = shipped_folder()
    files = (file for file in folder.rglob("*.yaml") if not file.name.startswith("_"))
    return sorted(str(file.relative_to(folder)) for file in files)
