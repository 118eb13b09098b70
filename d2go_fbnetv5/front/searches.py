"""Opens finished searches."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.continuing import CONFIG_FILE
from d2go_fbnetv5.engine.train import Run, prepare
from d2go_fbnetv5.utils.errors import InputError


def _config(folder: Path) -> CfgNode:
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no {CONFIG_FILE}")
    cfg = load_cfg(folder / CONFIG_FILE, ["OUTPUT_DIR", str(folder)])
    if cfg.MODEL.META_ARCHITECTURE != "MultitaskSearch":
        raise InputError(
            f"{folder} is a run of {cfg.MODEL.META_ARCHITECTURE}, allowed: a search (MultitaskSearch)"
        )
    return cfg


def search_device(folder: str | Path) -> str:
    """Return a finished search's MODEL.DEVICE, for `launch`; raises as `open_search` does."""
    return _config(Path(folder)).MODEL.DEVICE


@contextlib.contextmanager
def open_search(folder: Path) -> Iterator[Run]:
    """Open a finished search to look at it; its folder is ours meanwhile.

    Raises:
        FileNotFoundError: there is no run; InputError: it is no search.
    """
    opened = Run(prepare(_config(folder), 1, eval_only=True), eval_only=True)
    try:
        yield opened
    finally:
        opened.close()
