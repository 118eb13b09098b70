"""Makes a stdout that is full or closed an error with its name, as it is for any other file that a tool writes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class StdoutError(OSError):
    """stdout cannot be written. (No BrokenPipeError, at which rich ends the process without a word.)"""


@contextlib.contextmanager
def named_stdout() -> Iterator[None]:
    """Inside, what cannot be printed is a `StdoutError`; at the end of the block all is printed."""
    before, stream = sys.stdout, _Stdout(sys.stdout)
    sys.stdout = cast("TextIO", stream)
    try:
        yield
        stream.flush()
    finally:
        sys.stdout = before


class _Stdout:
    """sys.stdout, which is None if the process was started without one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is None:
            raise StdoutError(errno.EBADF, os.strerror(errno.EBADF), "stdout")
        with self._naming():
            return self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._naming():
                self._stream.flush()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer would be tried again at the process' end, and change its status.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
            raise StdoutError(error.errno, error.strerror, "stdout") from None
