"""Print docs/configuration.md, the reference of configuration keys, from the tables that the code itself reads.

python tools/configuration.py > docs/configuration.md
"""

from __future__ import annotations

from collections.abc import Iterable

from d2go_fbnetv5.engine.keys import KEYS
from d2go_fbnetv5.pseudo_labels.settings import SETTINGS
from d2go_fbnetv5.utils.rules import Key

_HEAD = """# Configuration

A file has the keys that it changes. `_BASE_` names another file, or one that ships, to start from; `KEY VALUE`
pairs on the command line come last. Names and defaults are those of Detectron2 and D2Go where they have the key. A key
that is set, to another value than its default, and that the kind of run at hand does not read is an error.

`make docs` writes this page.

## Training and search
"""
_LABELS = """
## Pseudo labels

The keys of `d2go_fbnetv5.pseudo_label`.
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([_HEAD, *_rows(KEYS.values()), _LABELS, *_rows(SETTINGS.values())])


def _rows(rows: Iterable[Key]) -> list[str]:
    lines = ["| key | default | allowed | |", "|---|---|---|---|"]
    for row in rows:
        default = list(row.default) if isinstance(row.default, tuple) else row.default
        shown = f"`{default!r}`" if row.rule.holds(row.default) else "to be set"
        readers = f" Only for {' and '.join(row.readers)}." if row.readers else ""
        lines.append(f"| `{row.name}` | {shown} | {row.rule} | {row.text}{readers} |")
    return lines


if __name__ == "__main__":
    print(page())
