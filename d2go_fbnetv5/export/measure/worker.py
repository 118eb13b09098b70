"""A process that measures files, so that one's threads and memory are not another's.

    python -m d2go_fbnetv5.export.measure.worker < task.json

The task: {"threads": 1, "rounds": 30, "candidates": [{"model", "format", "size", "path", "described"}, ...],
"modules": [...], "path": [...]}. A candidate's ``path`` is null where there is no file; ``modules`` register the
formats, and lie along ``path``. It prints a line of JSON: {"latency": [[median, spread], ...]} in milliseconds, or,
for a single candidate without ``rounds``, {"memory": bytes}: how much its loading and running adds to the process at
most.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from d2go_fbnetv5.export.formats.base import Format, get_format, split_int8
from d2go_fbnetv5.export.measure.subjects import open_subject
from d2go_fbnetv5.export.measure.timing import measure_in_turns

_MEMORY_RUNS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Answer one question and end."""
    task = json.load(sys.stdin)
    torch.manual_seed(0)
    sys.path.extend(folder for folder in task["path"] if folder not in sys.path)
    for module in task["modules"]:
        importlib.import_module(module)
    torch.set_num_threads(task["threads"])
    for kind in dict.fromkeys(map(_format, task["candidates"])):
        kind.use_threads(task["threads"])
    if "rounds" in task:
        answer: dict[str, Any] = {
            "latency": _latency(task["candidates"], task["rounds"], task["threads"] == 1)
        }
    else:
        answer = {"memory": _memory(task["candidates"][0])}
    print(json.dumps(answer))


def _latency(candidates: list[Mapping[str, Any]], rounds: int, one_thread: bool) -> list[tuple[float, float]]:
    calls = {str(index): _call(candidate) for index, candidate in enumerate(candidates)}
    measured = measure_in_turns(calls, rounds, one_thread)
    return [(latency.median, latency.spread) for latency in measured.values()]


def _memory(candidate: Mapping[str, Any]) -> int | None:
    """None where the system does not tell (it is not Linux)."""
    if not _CLEAR.exists():
        return None
    importlib.import_module(_format(candidate).runtime)  # what the package itself takes is not the model's
    _CLEAR.write_text("5")  # the peak begins anew
    before = _kilobytes("VmRSS")
    call = _call(candidate)
    for _ in range(_MEMORY_RUNS):
        call()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])


def _call(candidate: Mapping[str, Any]) -> Callable[[], Any]:
    kind, image = _format(candidate), 255 * torch.rand(1, 3, *candidate["size"])
    if candidate["path"] is None:
        module = open_subject(candidate["model"]).module(tuple(candidate["size"]))
        return kind.compiled(module, image)
    run = kind.load(candidate["path"], candidate["described"])
    return torch.inference_mode()(lambda: run(image))


def _format(candidate: Mapping[str, Any]) -> Format:
    return get_format(split_int8(candidate["format"])[0])


if __name__ == "__main__":
    main()
