"""A sign of life of every process for the others, so that one can say for whom it waits in vain."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

logger = logging.getLogger(__name__)

# Seconds between two signs of life; without one for so many of them a process is taken for stopped.
_PERIOD = 1.0
_ENOUGH_TO_TELL = 4
_WORTH_A_WORD = 60
_PACKAGE = Path(__file__).parents[1]

_reached: list[int] = []


def reach(iteration: int) -> None:
    """Take note of the training step that this process is in."""
    _reached[:] = [iteration]


class Heartbeat:
    """Writes into the store every second that this process lives and what it does, from a thread.

    A process whose successor falls silent says so, for a wait for it may last long.

    Args:
        store: on a connection that nothing else uses.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell the others that this process is done."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        next_one, seen, silent, count = (self._rank + 1) % self._world_size, None, 0, 0
        try:
            while not self._ended.wait(_PERIOD if count else 0):
                count += 1
                sign = {"count": count, "step": _reached[-1] if _reached else None, "place": _place()}
                self._store.set(_key(self._rank), json.dumps(sign))
                found = _read(self._store, next_one)
                silent = silent + 1 if found and found == seen and "done" not in found else 0
                seen = found
                if silent == _WORTH_A_WORD:
                    logger.error(
                        "process %d has not answered for %d seconds", next_one, _WORTH_A_WORD * _PERIOD
                    )
            self._store.set(_key(self._rank), json.dumps({"done": True}))
        except dist.DistError:
            return  # the store goes with the process that holds it


def who_is_missing(store: dist.Store, rank: int, world_size: int) -> str:
    """Say which other processes do not answer, or else where they are that are not where this one is."""
    others = [other for other in range(world_size) if other != rank]
    before = {other: _read(store, other) for other in others}
    time.sleep(_ENOUGH_TO_TELL * _PERIOD)
    after = {other: _read(store, other) for other in others}
    alive = {other: sign for other, sign in after.items() if sign and "done" not in sign}
    silent = [other for other, sign in alive.items() if sign == before[other]]
    if silent:
        return ", ".join(f"process {other} does not answer ({_describe(alive[other])})" for other in silent)
    steps = [sign["step"] for sign in alive.values() if sign["step"] is not None]
    behind = {
        other: sign for other, sign in alive.items() if sign["step"] is None or sign["step"] == min(steps)
    }
    return (
        ", ".join(f"process {other} is {_describe(sign)}" for other, sign in behind.items()) or "it is gone"
    )


def _describe(sign: dict[str, Any]) -> str:
    step = "" if sign["step"] is None else f"in step {sign['step']}, "
    return f"{step}at {sign['place']}"


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _read(store: dist.Store, rank: int) -> dict[str, Any] | None:
    return json.loads(store.get(_key(rank))) if store.check([_key(rank)]) else None


def _place() -> str:
    """Where in the package the main thread is, as "data/loader.py:142"."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "its start or end"
