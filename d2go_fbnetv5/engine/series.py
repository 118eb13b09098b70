"""Curves out of a run's history, the lines of ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def series(history: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[Any]]:
    """Iterations and values of one key, by iteration; values that are missing or not finite are left out.

    Where an iteration was written more than once, the last line counts.
    """
    values = {
        line["iteration"]: line[key] for line in history if "iteration" in line and line.get(key) is not None
    }
    found = sorted((i, v) for i, v in values.items() if not isinstance(v, float) or math.isfinite(v))
    return [iteration for iteration, _ in found], [value for _, value in found]


def thin(count: int, most: int) -> list[int]:
    """At most ``most`` (2 or more) indices of ``range(count)``, evenly spread, first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last ``window`` values at each position (of fewer at the start)."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means
