"""Detectron2's metrics.json, the history of a run: one JSON object a line."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2go_fbnetv5.utils.files import AppendedFile, write_atomically
from d2go_fbnetv5.utils.formatting import json_value

METRICS_FILE = "metrics.json"


class History:
    """Appends records to OUTPUT_DIR/metrics.json.

    Args:
        folder: OUTPUT_DIR.
        start_iteration: records of this iteration and later ones, left by a run that was interrupted after its
            last checkpoint, are dropped, as is a line that was only half written.
    """

    def __init__(self, folder: str | Path, start_iteration: int = 0) -> None:
        path = Path(folder, METRICS_FILE)
        kept = [r for r in read_history(folder) if r.get("iteration", -1) < start_iteration]
        write_atomically(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self._file = AppendedFile(path)

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(f"{json.dumps(json_value(record))}\n".encode())

    def close(self) -> None:
        self._file.close()


def write_evaluation(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Append an evaluation's record, in place of one of the same iteration under the same values ("changed")."""
    kept = [
        r for r in read_history(folder) if not (is_evaluation(r) and _under(r) == _under(json_value(record)))
    ]
    lines = [json.dumps(json_value(r)) for r in [*kept, record]]
    write_atomically(Path(folder, METRICS_FILE), "".join(f"{line}\n" for line in lines))


def _under(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("iteration"), record.get("changed")


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of an evaluation."""
    return any(key.startswith("eval") for key in record)


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """Read the records of OUTPUT_DIR/metrics.json in order, [] where there is none."""
    path = Path(folder, METRICS_FILE)
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run was killed while it wrote this line
        if isinstance(record, dict) and type(record.get("iteration", 0)) is int:
            records.append(record)
    return records


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
    """Return the mean of the last ``window`` values at each position (of fewer at the start)."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means
