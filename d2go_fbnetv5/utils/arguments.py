"""The command lines of the tools: how they are parsed, and the sentences about what they do not take."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.formatting import MOST_PIXELS
from d2go_fbnetv5.utils.options import to_budget


class ToolParser(argparse.ArgumentParser):
    """The parser of a tool's arguments.

    A text that begins with ``~/`` is a path in the user's folder: of ``--run=~/x`` no shell makes one. An empty text,
    as of a variable that is not set, is refused.

    Args:
        tool: its name, such as "export".
        description: of what it does, printed as it is.
        more: as `argparse.ArgumentParser` takes it.
    """

    def __init__(self, tool: str, description: str | None, **more: Any) -> None:
        super().__init__(
            prog=f"d2go_fbnetv5.{tool}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        self.register("type", None, _text)  # of every argument that names no type of its own
        self._tool = tool

    def print_help(self, file: Any = None) -> None:
        """Print the help; a stdout that cannot be written ends the tool as anything else that it prints does."""
        if status := run_tool(self._tool, lambda: print(self.format_help(), end="", file=file)):
            self.exit(status)


def _text(given: str) -> str:
    if not given:
        raise argparse.ArgumentTypeError("is empty")
    return os.path.expanduser(given) if given.startswith("~/") else given


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raise an InputError that names the flag if a number is less than allowed, such as ``rounds=1``."""
    for name, allowed in least.items():
        if (value := getattr(args, name)) < allowed:
            raise InputError(f"--{name.replace('_', '-')} {value}: allowed is {allowed} or more")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add ``--budget``, which `parse_budget` reads."""
    parser.add_argument(
        "--budget",
        nargs="+",
        metavar="COST=MOST",
        default=[],
        help="of a front.json the best network whose backbone costs no more: flops=9e6, params=5e5, or milliseconds by "
        "the name of a latency table of the front",
    )


def parse_budget(pairs: Sequence[str]) -> dict[str, float]:
    """Return ["flops=9e6"] as {"flops": 9e6}; an InputError names what is no such pair."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--budget {pair}: expected COST=MOST, such as flops=9e6")
    return to_budget(dict(pair.rsplit("=", 1) for pair in pairs), "--budget ")


def parse_size(text: str, flag: str = "--size") -> tuple[int, int]:
    """Return "224x320" as (224, 320), height and width in pixels; an InputError names the flag."""
    sides = text.lower().split("x")
    digits = all(side.isascii() and side.isdecimal() and len(side) < 10 for side in sides)
    if len(sides) != 2 or not digits or not all(0 < int(side) <= MOST_PIXELS for side in sides):
        raise InputError(
            f"{flag} {text[:50]}: expected HEIGHTxWIDTH in pixels, such as 224x320, each at most {MOST_PIXELS}"
        )
    return int(sides[0]), int(sides[1])
