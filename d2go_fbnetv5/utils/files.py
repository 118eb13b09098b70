"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

# Files of a folder that are waited for at once; a disk takes many together in the time of one.
_SYNCING = 16


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` for the block to write; it takes the place of ``path`` at the block's end.

    The data are on the disk before the rename, so that a power cut leaves the old file or the new one. If the block
    raises, the temporary file is removed and ``path`` stays as it was. Without the folder, a FileNotFoundError.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist")
    temporary = _temporary(path)
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary folder beside ``path`` for the block to fill; it becomes ``path`` at the block's end.

    A folder that is there already is moved out of the way and then removed. What a process leaves that is killed in
    the block, ``remove_rests`` finds. The folder around ``path`` is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary(path), _temporary(path, ".old")
    for rest in (temporary, old):  # of a process that had this one's id
        shutil.rmtree(rest, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        with ThreadPoolExecutor(_SYNCING) as pool:
            list(pool.map(_to_disk, temporary.rglob("*")))
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)


def remove_rests(path: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of writing the file or folder ``path``. No other may be writing it."""
    path = Path(path)
    for rest in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def _temporary(path: Path, kind: str = "") -> Path:
    # Of one process on one machine: several may write to the same disk, with the same ids where each is a container.
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{kind}.tmp")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces a file by a whole new one; text is written as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
