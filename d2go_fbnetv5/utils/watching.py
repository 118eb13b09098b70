"""A command in a process of its own, which code that it runs may end at any moment and without a word."""

import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable

from d2go_fbnetv5.utils.errors import describe_signal


def watched(tool: str, run: Callable[[], int], goes_on: str) -> int:
    """Run a tool in a child process, and say so where that is gone before the tool has ended.

    A user's code, or a library of it, may leave by `os._exit(0)`, which nothing in its own process can tell from an
    end; the system kills where memory runs out. Signals to end reach the child, which is killed when this process is.
    Where a process cannot be forked safely (all but Linux), the tool runs in this one.

    Args:
        tool: its name, before the message on stderr.
        run: gives the exit status.
        goes_on: how the user goes on with what was cut off.

    Returns:
        what `run` returns, or 2 after the message. In the child, which ends with it, SystemExit is raised.
    """
    if sys.platform != "linux":
        return run()
    ended = mmap.mmap(-1, 1)  # is of both processes
    alive, held = os.pipe()
    # A signal that comes before this process hands it on waits, or it would end this one alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(held)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        try:
            raise SystemExit(run())
        finally:
            ended[0] = 1
    os.close(alive)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the child's to hear
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended[0]:
        return status
    how = (
        f"was {describe_signal(-status)}" if status < 0 else f"ended with status {status} by code that it ran"
    )
    print(f"{tool}: its process {how}, before its work was done; {goes_on}", file=sys.stderr)
    return 2


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # nothing, when the parent's end is closed
    os.kill(os.getpid(), signal.SIGKILL)
