"""``card.json``: what is known of a trained model that others take, beside its network and weights.

The weights' hash is in it, and is compared whenever they are opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from d2go_fbnetv5.engine.config import get_cfg
from d2go_fbnetv5.engine.continuing import flat, stored_config
from d2go_fbnetv5.reports.history import is_evaluation, read_history
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import SIGNATURE, naming, write_atomically
from d2go_fbnetv5.utils.options import require
from d2go_fbnetv5.utils.text_files import read_json_object

CARD_FILE = "card.json"
SHARED_WEIGHTS = "model.safetensors"
_FORMAT = 1
_HASH = "sha256"
# Of a training; a folder that is shared once more keeps them.
_TRAINING = ("configuration", "seed", "iterations", "averaged", "metrics", "licence")


def describe_training(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a run's folder, or a shared one, says of how its newest weights came about, as far as it does.

    Returns:
        "configuration": values by key, those that are not the defaults, and of absolute paths the last part alone;
        "seed" and "iterations"; "averaged": whether the weights are an average over steps; "metrics": of the last
        evaluation of these weights, by name, without those of single classes.

    Raises:
        InputError: a file is damaged.
    """
    if Path(run, CARD_FILE).is_file():
        card = read_json_object(Path(run, CARD_FILE))
        return {key: card[key] for key in _TRAINING if key in card}
    found: dict[str, Any] = {}
    stored = stored_config(run)
    if stored:
        values, defaults = flat(stored), flat(yaml.safe_load(get_cfg().dump()))
        found["configuration"] = {
            key: _without_folders(value)
            for key, value in values.items()
            if value != defaults.get(key) and key not in ("OUTPUT_DIR", "SEED")
        }
        found |= {"seed": values.get("SEED"), "averaged": bool(values.get("MODEL_EMA.ENABLED"))}
    evaluations = [
        record for record in read_history(Path(run)) if is_evaluation(record) and "changed" not in record
    ]
    if evaluations:
        last = evaluations[-1]
        found |= {"iterations": last.get("iteration", -1) + 1, "metrics": _metrics(last)}
    return found


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    found = {key.removeprefix("eval/"): v for key, v in record.items() if key.startswith("eval/")}
    averaged = {key.removeprefix("ema/"): v for key, v in found.items() if key.startswith("ema/")}
    return {key: v for key, v in (averaged or found).items() if isinstance(v, float) and "-" not in key}


def _without_folders(value: Any) -> Any:
    is_path = isinstance(value, str) and os.path.isabs(os.path.expanduser(value))
    return Path(value).name if is_path else value


def write_card(folder: str | os.PathLike[str], content: Mapping[str, Any]) -> dict[str, Any]:
    """Write CARD_FILE beside SHARED_WEIGHTS, which are there; return what it says, with their hash."""
    card = {"author": SIGNATURE, "format": _FORMAT, _HASH: _hash(Path(folder, SHARED_WEIGHTS)), **content}
    write_atomically(Path(folder, CARD_FILE), json.dumps(card, indent=1) + "\n")
    return card


def check_weights(folder: str | os.PathLike[str]) -> None:
    """Compare SHARED_WEIGHTS with the hash in CARD_FILE; folders of before there was one pass.

    Raises:
        InputError: they are others, or the card is damaged.
    """
    path, weights = Path(folder, CARD_FILE), Path(folder, SHARED_WEIGHTS)
    if not path.is_file():
        return
    card = read_json_object(path)
    try:
        require(card, "format", lambda value: value == _FORMAT, f"{_FORMAT}, which this version reads")
        wanted = require(card, _HASH, lambda value: isinstance(value, str), "a text")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found = _hash(weights)
    if found != wanted:
        raise InputError(f"{weights} has the SHA-256 {found}, allowed is that of {CARD_FILE}, {wanted}")


def _hash(path: Path) -> str:
    with naming(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
