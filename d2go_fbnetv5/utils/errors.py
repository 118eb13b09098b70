"""Errors that are the user's to mend get one sentence; all others are bugs and keep their traceback."""

import contextlib
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from d2go_fbnetv5.utils.stdout import named_stdout
from d2go_fbnetv5.version import __version__


class InputError(ValueError):
    """A user's input cannot be used; the message names the key or file, what was found and what is allowed."""


class NonFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite."""


class LostProcessError(RuntimeError):
    """Another process that this one needs was killed, or does not answer; nothing is wrong with what it was given."""


# An OSError is the machine's word on a file: it is missing, may not be read, or the disk is full.
USER_ERRORS = (InputError, OSError, NonFiniteError, LostProcessError)


def sentence(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def brief(error: BaseException) -> str:
    """Return an error's kind and the beginning of what it says, on one line, for errors of others' making."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class RemoteTraceback(Exception):  # noqa: N818
    """Shows, as the cause of an error, where in another process it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def describe_signal(number: int) -> str:
    """Return what a signal did to a process, and why it is most often sent."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    likely = {
        "SIGKILL": ", as the system does when memory runs out",
        "SIGBUS": ", as happens when the shared memory (/dev/shm) is full",
    }.get(name, "")
    return f"killed by {name}{likely}"


class Terminated(KeyboardInterrupt):
    """SIGTERM told this process to end."""


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does: files are closed, and what it started is ended."""

    def interrupt(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_tool(name: str, run: Callable[[], int | None], goes_on: str = "") -> int:
    """Run a command line tool and return its exit status.

    Args:
        name: of the tool, before its messages on stderr.
        run: does the work and returns an exit status, None for 0.
        goes_on: how the user goes on with what was interrupted.

    Returns:
        what `run` returns; 2 after one sentence about what the user can mend; 130 or 143 if interrupted by SIGINT or
        SIGTERM; 1 after the traceback of anything else, which is a bug of ours.
    """
    goes_on = f"; {goes_on}" if goes_on else ""
    logger = logging.getLogger("d2go_fbnetv5")
    before = list(logger.handlers)
    try:
        with terminated_as_interrupted(), named_stdout():
            return run() or 0
    except USER_ERRORS as error:
        logger.debug("%s ended here", name, exc_info=True)
        lost = isinstance(error, LostProcessError)
        print(f"{name}: {sentence(error)}{goes_on if lost else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except (Exception, SystemExit):  # a user's code may leave by one, which must not look like an end
        traceback.print_exc()
        print(
            f"{name}: this is a bug of d2go_fbnetv5 {__version__} and not of your input; please report it to its issue "
            "tracker with the lines above",
            file=sys.stderr,
        )
        return 1
    finally:  # a run's log is not that of what this process does next
        for handler in logger.handlers[:]:
            if handler not in before:
                logger.removeHandler(handler)
                handler.close()
