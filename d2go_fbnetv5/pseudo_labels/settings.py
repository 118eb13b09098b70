"""The configuration of a labelling: which images, who labels them for each task, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.data import build_dataset
from d2go_fbnetv5.engine.config import as_dict, load_cfg
from d2go_fbnetv5.engine.keys import DEVICE, IMPORT_KEYS
from d2go_fbnetv5.engine.validate import check_device
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.rules import (
    FOLDER,
    OPEN,
    SWITCH,
    TEXT,
    TEXTS,
    Key,
    between,
    check,
    one_of,
    table,
)
from d2go_fbnetv5.utils.text_files import check_local

# The name of the classes of each task in DatasetInfo; depth has a unit in place of them.
FIELDS = {"CLS": "class_names", "DET": "box_names", "SEG": "sem_seg_names", "DEPTH": "depth_units"}
OF_CLASSES = ("CLS", "DET", "SEG")
# What the labels depend on; the other keys may change between a run and its continuation.
LABEL_KEYS = ("IMAGES", *FIELDS, "LIMIT", "CHUNK_SIZE")


# fmt: off
SETTINGS = IMPORT_KEYS | table((
    Key("IMAGES", {"READER": "image_folders"}, OPEN, "The images to label, as a data set of FBNETV5_DATA.DATASETS."),
    *(row for task in FIELDS for row in (
        Key(f"{task}.SOURCE", "none", one_of("none", "dataset", "teacher"),
            f"Where the labels for {task} come from; dataset keeps those of the reader."),
        Key(f"{task}.TEACHER", "", TEXT, "A registered teacher, or module:function."),
        Key(f"{task}.OPTIONS", {}, OPEN, "The teacher's options."),
    )),
    *(row for task in OF_CLASSES for row in (
        Key(f"{task}.THRESHOLD", 0.5, between(0, 1), "What scores less is no label."),
        Key(f"{task}.REMAP", {}, OPEN,
            "The set's classes by the source's, {sofa: couch, bed: ''}; '' drops one, and several may become one."),
        Key(f"{task}.NAMES", [], TEXTS,
            "The set's classes in order, others are dropped; empty: all of the source's."),
    )),
    Key("LIMIT", 0, between(0, 2**40), "Label only so many images, evenly spread over all, 0 for all."),
    Key("SKIP_MISSING", False, SWITCH, "Whether to go on where many images are not there or cannot be opened."),
    Key("CHUNK_SIZE", 1024, between(1, 2**24),
        "Images that are labelled and kept together: what a killed run has to do again, at most, in each process."),
    Key("BATCH_SIZE", 8, between(1, 2**17), "Images that a teacher sees at once."),
    Key("NUM_WORKERS", 4, between(0, 256), "Processes that read images, for each process of the run."),
    Key("DEVICE", "cuda", DEVICE, "What teachers run on."),
    Key("OUTPUT_DIR", "./output", FOLDER, "The folder of the labelled set."),
))
# fmt: on


def load_settings(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Settings from a YAML file, or a shipped one by its name, and `KEY VALUE` pairs.

    Raises:
        FileNotFoundError, ValueError: names the key, what was found, and what is allowed.
    """
    settings = load_cfg(path, opts, SETTINGS)
    for key, row in SETTINGS.items():
        check(settings, key, row.rule)
    for task in FIELDS:
        _check_task(task, settings[task])
    if all(settings[task].SOURCE == "none" for task in FIELDS):
        raise InputError(f"{', '.join(f'{task}.SOURCE' for task in FIELDS)} are all none: nothing to label")
    check_local("OUTPUT_DIR", settings.OUTPUT_DIR)
    check_device("DEVICE", settings.DEVICE)
    return settings


def _check_task(task: str, group: CfgNode) -> None:
    if (group.SOURCE == "teacher") != bool(group.TEACHER):
        raise InputError(
            f"{task}.SOURCE is {group.SOURCE!r} and {task}.TEACHER {group.TEACHER!r}, allowed: both or neither name "
            "a teacher"
        )
    if task in OF_CLASSES:
        for name in group.NAMES:
            _check_name(f"{task}.NAMES has", name)
        for name, new in group.REMAP.items():
            _check_name(f"{task}.REMAP has {name!r}:", "" if new is None else new)
    if "device" in group.OPTIONS:
        raise InputError(f"{task}.OPTIONS has 'device', which DEVICE sets")


def _check_name(what: str, name: Any) -> None:
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise InputError(
            f"{what} {name!r}, allowed: names, in quotes where they are words such as yes or null"
        )


def names_and_remap(group: CfgNode) -> tuple[list[str], dict[str, str]]:
    """NAMES and REMAP of a task; YAML reads a class named 7 as a number."""
    remap = {str(name): "" if new is None else str(new) for name, new in group.REMAP.items()}
    return [str(name) for name in group.NAMES], remap


def open_images(settings: CfgNode) -> Any:
    """Open the data set that IMAGES names.

    Raises:
        ValueError: it does not exist, or its images are no files. Whatever opening it raises.
    """
    options = as_dict(settings.IMAGES)
    reader = options.pop("READER")
    if not isinstance(reader, str):
        raise InputError(f"IMAGES.READER is {reader!r}, allowed: the name of a reader")
    try:
        dataset = build_dataset(reader, **options)
    except InputError as error:
        raise InputError(f"IMAGES: {error}") from error
    if not hasattr(dataset, "image_path"):
        raise InputError(f"IMAGES.READER is {reader!r}, allowed are readers of image files")
    return dataset


def label_settings(settings: CfgNode) -> dict[str, Any]:
    """Return the keys that the labels depend on, with plain values."""
    plain = as_dict(settings)
    return {key: plain[key] for key in LABEL_KEYS}
