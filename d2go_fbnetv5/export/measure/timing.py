"""Latency of several candidates on this machine, taken in turns so that all of them see the same machine."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2go_fbnetv5.utils.errors import InputError

_WARM_UP = 3
_LEAST_SECONDS = 2e-3  # of a sample: shorter ones are mostly the clock's and the interpreter's


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median over rounds, and the range between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> Latency:
        if len(milliseconds) == 1:
            return cls(milliseconds[0], 0.0)
        low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
        return cls(median, high - low)


def measure_in_turns(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, one_thread: bool = True
) -> dict[str, Latency]:
    """The latency of each candidate; every round takes one sample of each.

    Args:
        candidates: by name, called without arguments.
        rounds: 1 or more.
        one_thread: they run on the calling thread alone, and it is that thread's processor time which counts: what it
            waits for other programs is no property of a network. Otherwise it is the time on the wall.

    Raises:
        ValueError: less than one round.
    """
    if rounds < 1:
        raise InputError(f"{rounds} rounds; allowed is 1 or more")
    clock = time.thread_time if one_thread else time.perf_counter
    calls = {name: _calls_per_sample(call, clock) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = clock()
            for _ in range(calls[name]):
                call()
            samples[name].append(1000 * (clock() - start) / calls[name])
    return {name: Latency.of(values) for name, values in samples.items()}


def _calls_per_sample(call: Callable[[], Any], clock: Callable[[], float]) -> int:
    for _ in range(_WARM_UP):
        start = clock()
        call()
        seconds = clock() - start
    return max(1, math.ceil(_LEAST_SECONDS / max(seconds, 1e-7)))


def versions(packages: Iterable[str]) -> str:
    """Such as "executorch 1.5.1, torch 2.14.1"."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def machine() -> str:
    """This machine's processor, such as "x86_64, AMD EPYC"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join([platform.machine(), *models[:1]])
