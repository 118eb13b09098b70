"""Latency tables: the milliseconds of every part of a family, from `latency_table` or from a phone.

    # family: N
    # size: 96x96
    name,milliseconds
    stage0.path0,0.21
    ...
    block.path3,0.08

``stage0.path0`` to ``stage0.path3`` are the partitions of Stage 0, ``block.path0`` to ``block.path3`` a searchable
block of each path, which is the same network in every stage. Lines that begin with ``#`` are comments; where they say
``family:`` or ``size:`` (HEIGHTxWIDTH), the table holds for that alone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

from d2go_fbnetv5.arch.cost import BlockCosts
from d2go_fbnetv5.arch.families import PATHS, Family
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import SIGNATURE, write_atomically
from d2go_fbnetv5.utils.options import MisfitError, shown, to_float
from d2go_fbnetv5.utils.text_files import read_text

COLUMNS = ("name", "milliseconds")
_MOST_BYTES = 1_000_000
_MOST_MILLISECONDS = 1e9
STAGE0 = tuple(f"stage0.{path}" for path in PATHS)
BLOCKS = tuple(f"block.{path}" for path in PATHS)


def write_latency_table(
    path: str | os.PathLike[str],
    costs: BlockCosts,
    family: Family,
    size: Sequence[int],
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes a table that `read_latency_table` reads, whole or not at all.

    Args:
        costs: milliseconds.
        size: height and width of the image.
        about: more comment lines, such as the machine.
    """
    comments = {"family": family.name, "size": f"{size[0]}x{size[1]}", **(about or {})}
    lines = [f"# {SIGNATURE}"]
    lines += [f"# {key}: {' '.join(value.split())}" for key, value in comments.items()]
    lines.append(",".join(COLUMNS))
    values = zip((*STAGE0, *BLOCKS), (*costs.stage0, *costs.blocks), strict=True)
    lines += [f"{name},{milliseconds:.6g}" for name, milliseconds in values]
    write_atomically(path, "\n".join(lines) + "\n")


def read_latency_table(path: str | os.PathLike[str], family: Family, size: Sequence[int]) -> BlockCosts:
    """Read the milliseconds of a family's parts at an image of ``size`` (height, width).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table is of another family or size, or not as described above; the message names the file, the
            line, what was found and what is allowed.
    """
    try:
        lines = read_text(path, _MOST_BYTES).splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; d2go_fbnetv5.latency_table measures such a table") from error
    milliseconds: dict[str, float] = {}
    found_at: dict[str, int] = {}
    header = False
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if line.lstrip().startswith("#"):
            _check_comment(line, where, family, size)
            continue
        row = _cells(line, where)
        if not any(row):
            continue
        if not header:
            if tuple(row) != COLUMNS:
                raise InputError(
                    f"{where}: {shown(line.strip())} found, the header {','.join(COLUMNS)!r} expected"
                )
            header = True
            continue
        name, value = _parse_row(row, where)
        if name in milliseconds:
            raise InputError(f"{where}: {name!r} stands in line {found_at[name]} already, allowed is once")
        milliseconds[name], found_at[name] = value, number
    missing = [name for name in (*STAGE0, *BLOCKS) if name not in milliseconds]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing; needed are {', '.join((*STAGE0, *BLOCKS))}")
    if not any(milliseconds[name] for name in BLOCKS):
        raise InputError(
            f"{path}: all blocks take 0 milliseconds, allowed is more for one of them or several"
        )
    return BlockCosts(
        "latency",
        tuple(milliseconds[name] for name in STAGE0),
        tuple(milliseconds[name] for name in BLOCKS),
    )


def _cells(line: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error as error:  # of more characters in a cell than it reads, for one
        raise InputError(f"{where}: not CSV ({error})") from error


def _check_comment(line: str, where: str, family: Family, size: Sequence[int]) -> None:
    key, colon, value = (part.strip() for part in line.lstrip("# \t").partition(":"))
    expected = {"family": family.name, "size": f"{size[0]}x{size[1]}"}
    if colon and key in expected and value != expected[key]:
        raise InputError(f"{where}: the table is of {key} {value[:50]}, needed is {expected[key]}")


def _parse_row(row: Sequence[str], where: str) -> tuple[str, float]:
    if len(row) != len(COLUMNS):
        raise InputError(
            f"{where}: {len(row)} columns found, the {len(COLUMNS)} of {','.join(COLUMNS)!r} expected"
        )
    name, text = row
    if name not in (*STAGE0, *BLOCKS):
        raise InputError(f"{where}: unknown name {shown(name)}; allowed are {', '.join((*STAGE0, *BLOCKS))}")
    try:
        value = to_float(text)
    except MisfitError:
        value = -1.0
    if not 0 <= value <= _MOST_MILLISECONDS or "_" in text:
        raise InputError(
            f"{where}: {name} takes {shown(text)}, allowed are milliseconds of 0 to {_MOST_MILLISECONDS:g}"
        )
    return name, value
