"""Errors that are the user's to mend get one sentence; all others are bugs and keep their traceback."""

import logging
import sys
import traceback
from collections.abc import Callable

from d2go_fbnetv5.version import __version__


class InputError(ValueError):
    """What a user gave cannot be used; the message names the key or file, what was found and what is allowed."""


class NonFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite."""


# An OSError is the machine's word on a file: it is missing, may not be read, or the disk is full.
USER_ERRORS = (InputError, OSError, NonFiniteError)


def sentence(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def run_tool(name: str, run: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command line tool and return its exit status.

    Args:
        name: of the tool, before its messages on stderr.
        run: does the work and returns an exit status, None for 0.
        interrupted: what to say after Ctrl-C.

    Returns:
        what `run` returns; 2 after one sentence about what the user can mend; 130 if interrupted; 1 after the
        traceback of anything else, which is a bug of ours.
    """
    from d2go_fbnetv5.utils.opencv import check_opencv  # whose errors are this module's

    try:
        check_opencv()
        return run() or 0
    except USER_ERRORS as error:
        logging.getLogger("d2go_fbnetv5").debug("%s ended here", name, exc_info=True)
        print(f"{name}: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(
            f"{name}: this is a bug of d2go_fbnetv5 {__version__} and not of your input; please report it to its issue "
            "tracker with the lines above",
            file=sys.stderr,
        )
        return 1
