"""Log messages: short lines on the console, everything in OUTPUT_DIR/log.txt."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOG_FILE = "log.txt"


def setup_logging(is_main: bool) -> None:
    """Messages on stderr; of processes other than the first only errors."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handler.setLevel(logging.INFO if is_main else logging.ERROR)
        root.addHandler(handler)


class _Console(logging.StreamHandler):
    """Writes to what sys.stderr is at the time of a message; one that was replaced, as by tests, may be closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A log that says once that it cannot go on (a full disk); logging prints a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger = logging.getLogger("d2go_fbnetv5")
        logger.removeHandler(self)
        logger.warning("%s cannot be written any more: %s", self.baseFilename, error.strerror)


def log_to_file(folder: Path) -> None:
    """Append to the folder's log.txt from now on, also the tracebacks that the console spares its reader."""
    handler = _LogFile(folder / LOG_FILE, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.DEBUG)
    logger = logging.getLogger("d2go_fbnetv5")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)


@contextlib.contextmanager
def said_before() -> Iterator[None]:
    """Inside, the package's warnings are not shown: what is opened here was opened before, and they were."""
    logger = logging.getLogger("d2go_fbnetv5")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
