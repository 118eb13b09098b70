"""The latency of a family's parts on a phone: files for ExecuTorch's own runner, and what it says of them."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2go_fbnetv5.arch import BlockCosts
from d2go_fbnetv5.arch.families import Family
from d2go_fbnetv5.arch.latency_table import BLOCKS, STAGE0
from d2go_fbnetv5.export.formats.executorch_programs import lower, require_executorch
from d2go_fbnetv5.export.measure.latency import CHAIN, family_modules
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.text_files import read_text

SCRIPT = "run.sh"
_MOST_BYTES = 100_000_000  # of a log; the runner also prints numbers of the outputs
_PART = re.compile(r"part (\S+)")
_TIME = re.compile(r"Model executed successfully (\d+) time\(s\) in ([0-9.]+) ms")

# Of POSIX' shell alone, which is what Android has. All parts take turns, as a phone's clock changes with its warmth.
_SCRIPT = """#!/bin/sh
# Times every part on one thread, all of them in turns: sh run.sh [RUNNER [ROUNDS [TIMES]]] > parts.log
cd "$(dirname "$0")" || exit 1
round=0
while [ $round -lt "${2:-20}" ]; do
  for part in PARTS; do
    echo "part $part"
    "${1:-./executor_runner}" --model_path $part.pte --num_executions "${3:-100}" --cpu_threads 1 2>&1 || exit 1
  done
  round=$((round + 1))
done
"""


def write_parts(
    folder: str | os.PathLike[str],
    family: Family,
    size: tuple[int, int],
    progress: Callable[[str], Any] = lambda name: None,
) -> None:
    """Write each part of a family as a program of ExecuTorch, and the script that times them on a phone.

    A searchable block is four in a row, as in `measure_family`: called alone, a small one is mostly the call.

    Args:
        folder: made if it is not there.
        size: height and width of the image.
        progress: is told what is made ready next.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    require_executorch()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = family_modules(family, size)
    for name, (module, example) in modules.items():
        progress(name)
        write_atomically(folder / f"{name}.pte", lower({"forward": (module, (example,), None)}))
    write_atomically(folder / SCRIPT, _SCRIPT.replace("PARTS", " ".join(modules)))


def read_parts(path: str | os.PathLike[str]) -> BlockCosts:
    """Return the milliseconds of parts that the script's log has: the median over its rounds.

    Raises:
        FileNotFoundError: there is no such log; InputError: it has no time of a part.
    """
    times: dict[str, list[float]] = {name: [] for name in (*STAGE0, *BLOCKS)}
    part = ""
    for number, line in enumerate(read_text(path, _MOST_BYTES).splitlines(), start=1):
        if begun := _PART.fullmatch(line.strip()):
            part = begun[1]
            if part not in times:
                raise InputError(
                    f"{path}, line {number}: unknown part {part!r}; allowed are {', '.join(times)}"
                )
        elif part and (found := _TIME.search(line)):
            count, milliseconds = int(found[1]), float(found[2])
            if count < 1 or not is_number(milliseconds):
                raise InputError(f"{path}, line {number}: {found[0]!r} is no time")
            times[part].append(milliseconds / count / (CHAIN if part in BLOCKS else 1))
    missing = [name for name, values in times.items() if not values]
    if missing:
        raise InputError(
            f"{path} says no time of {', '.join(missing)}; the runner must be built with "
            "EXECUTORCH_ENABLE_LOGGING=ON, and end without an error"
        )
    medians = {name: statistics.median(values) for name, values in times.items()}
    return BlockCosts("latency", *(tuple(medians[name] for name in names) for names in (STAGE0, BLOCKS)))
