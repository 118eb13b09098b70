"""Numbers as people read and write them."""

from __future__ import annotations

import decimal
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

MISSING = "–"
MOST_PIXELS = 2**14  # of a side; what exceeds it is a slip
MOST_AREA = 2**24  # pixels of an image that is computed with, at some hundred bytes for each


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value of a file is a finite number; a switch is none, nor an integer beyond all floats."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def format_least(value: float) -> str:
    """Return a number that is no less, of four digits: what is asked for by it is not missed by a rounding."""
    return f"{float(_ROUNDING_UP.create_decimal_from_float(value)):g}"


def format_most(value: float) -> str:
    """Return a number that is no greater, of four digits."""
    return f"{float(_ROUNDING_DOWN.create_decimal_from_float(value)):g}"


_ROUNDING_UP, _ROUNDING_DOWN = (
    decimal.Context(prec=4, rounding=rounding) for rounding in (decimal.ROUND_CEILING, decimal.ROUND_FLOOR)
)


def json_value(value: Any) -> Any:
    """Return what JSON can hold of a value: null for a number that is not finite, ``to_dict()`` of what has it."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.to_dict() if hasattr(value, "to_dict") else value


def format_count(value: float | None) -> str:
    """Three significant digits with a unit of thousands: 726.4e6 -> "726M", 1.36e9 -> "1.36G"."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        scaled = float(f"{value / size:.3g}")
        if abs(scaled) >= 1:
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled))))}f}{unit}"
    return f"{value:.3g}"


def format_metric(value: float | None) -> str:
    """Return a metric with three decimals; a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3f}"


def format_share(value: float | None) -> str:
    """Return a share in [0, 1] as a percentage."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.0f}%"


def format_duration(seconds: float) -> str:
    """ "48 s", "5 min 12 s" or "10 h 3 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_plural(count: int, one: str, many: str) -> str:
    """ "1 topology", "8 topologies"."""
    return f"{count} {one if count == 1 else many}"
