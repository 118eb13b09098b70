"""IMPORTS of a configuration: the user's own modules, which register tasks, readers, families, teachers or formats."""

from __future__ import annotations

import importlib
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path

from fvcore.common.config import CfgNode

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.text_files import expand_user


def import_modules(cfg: CfgNode) -> None:
    """Import the modules that IMPORTS names; this runs their code.

    They are looked for where Python looks, in the current folder and in IMPORT_FOLDERS, to which `load_cfg` adds the
    configuration file's own. Every process of a run calls it before it looks up a name; in one that has done so already
    nothing happens.

    Raises:
        ValueError: there is no such module, or it cannot be imported; names the key.
    """
    if not cfg.IMPORTS:
        return
    wanted = dict.fromkeys([str(Path.cwd()), *map(expand_user, cfg.IMPORT_FOLDERS)])
    folders = [folder for folder in wanted if Path(folder).is_dir()]
    # At the end: a user's module must not hide one of the same name that an installed package imports later.
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    for name in cfg.IMPORTS:
        _import(name, folders)


def _import(name: str, folders: list[str]) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"IMPORTS has {name!r}, allowed: names of modules, such as mine or package.mine")
    try:
        importlib.invalidate_caches()
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise InputError(
            f"IMPORTS: there is no module {error.name!r} along Python's path or in {', '.join(folders)}"
        ) from None
    except (Exception, SystemExit) as error:  # of the user's code
        raise _failed(name, error) from error
    top = name.split(".")[0]
    theirs, found = PathFinder.find_spec(top, folders), sys.modules[top].__spec__
    if theirs is not None and theirs.origin and found is not None and theirs.origin != found.origin:
        raise InputError(
            f"IMPORTS: {theirs.origin} is hidden by {found.origin or found.name}, which Python finds first under the "
            "same name; give yours another"
        )


def _failed(name: str, error: BaseException) -> InputError:
    """The error of a user's module with the line that their traceback would end at."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")
    ]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if len(frames) > 1 else name
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}"
    return InputError(f"IMPORTS: {name} cannot be imported: {type(error).__name__} in {where}: {error}")
