"""Files and folders that are whole or not there: written under a temporary name, then renamed.

An OSError that is raised while a file is written names that file, a full disk's too.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from d2go_fbnetv5.utils.errors import InputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # where there is none, nothing is locked and no rest is removed
    fcntl = None

# Stands near the beginning or the end of what a tool has written under a name that the user gave.
SIGNATURE = "written by d2go_fbnetv5"
_SIGNED = 2**14  # bytes

# Files of a folder that are waited for at once; a disk takes many together in the time of one.
_SYNCING = 16
_REST = re.compile(
    r".+\.\d+(\.[0-9a-f]{8})?(\.old)?\.tmp"
)  # as `_temporary` names them, and names of older versions


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a temporary file beside ``path`` to write; it takes the place of ``path`` at the block's end.

    The data are on the disk before the rename, so that a power cut leaves the old file or the new one. If the block
    raises, the temporary file is removed and ``path`` stays as it was. Without the folder, a FileNotFoundError. What
    killed processes left of writing ``path`` is removed.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist")
    remove_rests(path)
    temporary = _temporary(path)
    with naming(path):
        # Exclusive, and under a name that nobody can guess: a link that lies there is not followed.
        mark = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o666)
        try:
            _lock(mark)
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, path)
        finally:
            os.close(mark)
            with contextlib.suppress(OSError):  # renamed, or gone with its folder
                temporary.unlink()


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block an empty temporary folder beside ``path`` to fill; it becomes ``path`` at the block's end.

    A folder that is there already is moved out of the way and then removed. What killed processes left of writing
    ``path`` is removed. The folder around ``path`` is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_rests(path)
    temporary, old = _temporary(path), _temporary(path, ".old")
    with naming(path):
        temporary.mkdir()
        mark = os.open(temporary, os.O_RDONLY)
        try:
            _lock(mark)
            yield temporary
            with ThreadPoolExecutor(_SYNCING) as pool:
                list(pool.map(_to_disk, temporary.rglob("*")))
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            os.close(mark)
            for rest in (temporary, old):
                shutil.rmtree(rest, ignore_errors=True)


def remove_rests(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of writing the file or folder ``path``, but nothing that is being written."""
    path = Path(path)
    _remove(path.parent.glob(f"{glob.escape(path.name)}.*.tmp"))


def remove_rests_in(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of writing any file of ``folder``, but nothing that is being written."""
    _remove(Path(folder).glob("*.tmp"))


def _remove(paths: Iterator[Path]) -> None:
    for rest in paths:
        if _REST.fullmatch(rest.name) is None or not _is_left(rest):
            continue
        if rest.is_dir() and not rest.is_symlink():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                rest.unlink()


def _is_left(rest: Path) -> bool:
    """Tell whether no living process holds a temporary file; its lock ends with the process, however it ends."""
    if fcntl is None:
        return False
    try:
        mark = os.open(rest, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return rest.is_symlink()
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(mark)
    return True


def _lock(mark: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some network disks know no locks: a rest stays there for good
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _temporary(path: Path, kind: str = "") -> Path:
    # Of one process on one machine: several may write to the same disk, with the same ids where each is a container.
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}{kind}.tmp")


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


def refuse_others(path: str | os.PathLike[str], other: str = "another name") -> None:
    """Raise an InputError where ``path`` is there and neither empty nor signed, and so may be a user's own.

    Args:
        other: what the user may choose instead.
    """
    if os.path.lexists(path) and not is_ours(path):
        raise InputError(
            f"{os.fspath(path)} is there and is nothing that this package has written; choose {other}"
        )


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the SIGNATURE, or nothing in it."""
    path = Path(path)
    if not path.is_file():
        return False
    size = path.stat().st_size
    with open(path, "rb") as file:
        begin = file.read(_SIGNED)
        file.seek(max(0, size - _SIGNED))
        return not size or SIGNATURE.encode() in begin or SIGNATURE.encode() in file.read()


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name ``path`` in an OSError of the block that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


class AppendedFile:
    """A file that grows for as long as a program runs: what is written is with the system at once.

    Nothing is kept back, so nothing is left that ``close`` could fail on after a full disk.

    Args:
        path: opened for appending, or made.
        new: it must not be there yet.
    """

    def __init__(self, path: str | os.PathLike[str], new: bool = False) -> None:
        self.path = Path(path)
        self._file = open(path, "xb" if new else "ab", buffering=0)  # noqa: SIM115 (open until `close`)

    def write(self, content: bytes) -> None:
        """Append all of ``content``; an OSError names the file."""
        rest = memoryview(content)
        with naming(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        with naming(self.path):
            self._file.close()


class FolderLock:
    """One process' claim to a folder, for as long as it lives.

    The kernel gives it back when the process ends, however it ends, and child processes do not inherit it.

    Args:
        folder: exists; gets a file ".lock", which stays.

    Attributes:
        holder: what the process that has the lock wrote about itself, "" where this process has it.
        problem: why the folder cannot be locked at all, "" where it can; a claim then counts as granted.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.holder = self.problem = ""
        path = Path(folder, ".lock")
        with naming(path):
            self._file = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)

    def claim(self) -> bool:
        """Try once; whether the folder is this process' now."""
        self.holder = self.problem = ""
        if fcntl is None:
            self.problem = "this system has no file locks"
            return True
        try:
            # Of the process, not of the open file: loader workers of a killed run live on for a while.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.holder = os.pread(self._file, 200, 0).decode("utf-8", "replace").strip() or "unknown"
            return False
        except OSError as error:
            self.problem = error.strerror or str(error)
            return True
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name, too
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        return True

    def release(self) -> None:
        os.close(self._file)
