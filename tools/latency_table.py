"""Measure every block of a family on this machine: a table for SEARCH.COST.TABLE.

    python tools/latency_table.py --family A --size 224x224 table.csv
    python tools/latency_table.py --family N --size 96x96 --format onnx --check 8 table.csv

One thread, batch 1, batch norm folded; the median over rounds that take all blocks in turn. A table of a phone is the
same CSV: name,milliseconds of stage0.path0 to stage0.path3 and block.path0 to block.path3, without more. So is what
ExecuTorch's own runner says of the same files there (docs/phone.md):

    python tools/latency_table.py --family N --size 96x96 --parts parts phone.csv
    python tools/latency_table.py --family N --size 96x96 --log parts.log phone.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.arch import block_costs, build_family, list_families
from d2go_fbnetv5.arch.cost import check_size
from d2go_fbnetv5.arch.families import Family
from d2go_fbnetv5.arch.latency_table import BLOCKS, STAGE0, write_latency_table
from d2go_fbnetv5.export.formats.base import get_format, list_formats
from d2go_fbnetv5.export.measure.latency import FamilyLatency, measure_family
from d2go_fbnetv5.export.measure.phone import SCRIPT, read_parts, write_parts
from d2go_fbnetv5.export.measure.timing import machine, versions
from d2go_fbnetv5.utils.arguments import ToolParser, check_least, parse_size
from d2go_fbnetv5.utils.errors import run_tool
from d2go_fbnetv5.utils.files import refuse_others
from d2go_fbnetv5.utils.formatting import format_count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("latency_table", lambda: _run(args))


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("latency_table", __doc__)
    parser.add_argument("output", metavar="TABLE", help="the CSV file to write")
    parser.add_argument("--family", required=True, help=f"one of {', '.join(list_families())}")
    parser.add_argument("--size", help="HEIGHTxWIDTH in pixels; default: the family's own")
    parser.add_argument(
        "--format",
        default=list_formats("usual")[0],
        help=f"one of {', '.join(list_formats('parts'))} (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="of measurements (50)")
    parser.add_argument(
        "--check",
        type=int,
        default=0,
        metavar="N",
        help="measure N networks of random topologies, too, and compare them with the sums of their parts",
    )
    parser.add_argument(
        "--parts",
        metavar="DIR",
        help="measure nothing, write the parts for a phone and the script that times them",
    )
    parser.add_argument("--log", metavar="FILE", help="measure nothing, make the table of that script's log")
    parser.add_argument("--stages", type=int, default=7, metavar="S", help="of these networks (7)")
    return parser


def _run(args: argparse.Namespace) -> None:
    family = build_family(args.family)
    size = parse_size(args.size) if args.size else (family.input_size,) * 2
    size = check_size(size, family)
    check_least(args, rounds=1, check=0, stages=1)
    if args.parts:
        write_parts(args.parts, family, size)
        print(f"{args.parts}: eight programs, and {SCRIPT}, whose log --log makes {args.output} of")
        return
    folder = Path(args.output).parent
    if not folder.is_dir():  # known before minutes of measuring, not after
        raise FileNotFoundError(f"{args.output}: there is no folder {folder}")
    refuse_others(args.output)
    if args.log:
        costs = read_parts(args.log)
        write_latency_table(args.output, costs, family, size, {"log": Path(args.log).name, "threads": "1"})
        print(f"{args.output}: for SEARCH.COST.TABLE, with SEARCH.COST.METRIC latency")
        return
    console = Console(stderr=True)
    with console.status("") as status:
        measured = measure_family(
            family,
            size,
            args.format,
            args.rounds,
            args.check,
            args.stages,
            lambda name: status.update(f"{args.format}: {name}"),
        )
    about = {
        "format": args.format,
        "machine": machine(),
        "threads": "1",
        "versions": versions(dict.fromkeys([get_format(args.format).runtime.split(".")[0], "torch"])),
    }
    write_latency_table(args.output, measured.costs, family, size, about)
    Console().print(_table(family, size, args.format, measured))
    if measured.correlation is not None:
        Console().print(_check(measured))
    print(f"{args.output}: for SEARCH.COST.TABLE, with SEARCH.COST.METRIC latency")


def _table(family: Family, size: tuple[int, int], format: str, measured: FamilyLatency) -> Table:
    title = f"Family {family.name} at {size[0]}x{size[1]}, {format}, one thread"
    table = Table(title=Text(title), box=SIMPLE_HEAD)
    table.add_column("part")
    for column in ("ms", "spread", "FLOPs", "ms per MFLOP"):
        table.add_column(column, justify="right")
    flops = block_costs(family, size)
    rows = zip(
        (*STAGE0, *BLOCKS),
        (*measured.costs.stage0, *measured.costs.blocks),
        (*flops.stage0, *flops.blocks),
        strict=True,
    )
    for name, ms, count in rows:
        spread, rate = measured.spreads[name], 1e6 * ms / count
        table.add_row(name, f"{ms:.3f}", f"{spread:.3f}", format_count(count), f"{rate:.4f}")
    return table


def _check(measured: FamilyLatency) -> str:
    ratios = sorted(whole / total for total, whole in measured.networks)
    return (
        f"{len(ratios)} networks of random topologies: they take {ratios[0]:.2f} to {ratios[-1]:.2f} times the sum of "
        f"their parts, correlation {measured.correlation:.3f}"
    )


if __name__ == "__main__":
    cli()
