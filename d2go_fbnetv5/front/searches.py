"""Opens finished searches."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from d2go_fbnetv5.engine.continuing import search_config
from d2go_fbnetv5.engine.train import Run, prepare


def search_device(folder: str | Path) -> str:
    """Return a finished search's MODEL.DEVICE, for `launch`; raises as `open_search` does."""
    return search_config(Path(folder)).MODEL.DEVICE


@contextlib.contextmanager
def open_search(folder: Path) -> Iterator[Run]:
    """Open a finished search to look at it; its folder is ours meanwhile.

    Raises:
        FileNotFoundError: there is no run; InputError: it is no search.
    """
    opened = Run(prepare(search_config(folder), 1, eval_only=True), eval_only=True)
    try:
        yield opened
    finally:
        opened.close()
