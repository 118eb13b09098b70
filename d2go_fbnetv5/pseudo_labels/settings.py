"""The configuration of a labelling: which images, who labels them for each task, and how.

::

    IMPORTS: []                     # modules of one's own, which register readers and teachers
    IMAGES:                         # any reader of files, with its options, as in FBNETV5_DATA.DATASETS
      READER: image_folders
      folders: [photos]
    CLS:                            # and DET, SEG: where a task's labels come from
      SOURCE: teacher               # "teacher", "dataset" (the reader's own labels are kept) or "none"
      TEACHER: torchvision          # a registered teacher, or module:function
      OPTIONS: {...}                # the teacher's
      THRESHOLD: 0.5                # what scores less is no label
      REMAP: {sofa: couch, bed: ""} # the source's class: the set's, "" drops it; several may become one
      NAMES: []                     # the set's classes in order, others are dropped; empty: all of the source's
    LIMIT: 0                        # label only so many images, evenly spread over all; 0: all
    SKIP_MISSING: False             # whether to go on where many images are not there or cannot be opened
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.data import build_dataset
from d2go_fbnetv5.engine.config import as_dict, load_cfg
from d2go_fbnetv5.engine.defaults import add_imports
from d2go_fbnetv5.engine.validate import check_choice, check_device, check_range
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.text_files import check_local

# The name of the classes of each task in DatasetInfo.
FIELDS = {"CLS": "class_names", "DET": "box_names", "SEG": "sem_seg_names"}
SOURCES = ("none", "dataset", "teacher")
# What the labels depend on; the other keys may change between a run and its continuation.
LABEL_KEYS = ("IMAGES", *FIELDS, "LIMIT", "CHUNK_SIZE")


_MOST_WORKERS = 256  # each is a process


def default_settings() -> CfgNode:
    """Return all keys of a labelling with their defaults."""
    settings = CfgNode()
    add_imports(settings)
    settings.IMAGES = CfgNode({"READER": "image_folders"}, new_allowed=True)
    for task in FIELDS:
        settings[task] = CfgNode({"SOURCE": "none", "TEACHER": "", "THRESHOLD": 0.5, "NAMES": []})
        for group in ("OPTIONS", "REMAP"):
            settings[task][group] = CfgNode(new_allowed=True)
    settings.LIMIT = 0
    settings.SKIP_MISSING = False
    # Images that are labelled and kept together: what a killed run has to do again, at most, in each process.
    settings.CHUNK_SIZE = 1024
    settings.BATCH_SIZE = 8
    settings.NUM_WORKERS = 4
    settings.DEVICE = "cuda"
    settings.OUTPUT_DIR = "./output"
    return settings


def load_settings(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Settings from a YAML file, or a shipped one by its name, and `KEY VALUE` pairs.

    Raises:
        FileNotFoundError, ValueError: names the key, what was found, and what is allowed.
    """
    settings = load_cfg(path, opts, default_settings)
    for task in FIELDS:
        check_choice(settings, f"{task}.SOURCE", SOURCES)
        _check_task(task, settings[task])
    if all(settings[task].SOURCE == "none" for task in FIELDS):
        raise InputError(f"{', '.join(f'{task}.SOURCE' for task in FIELDS)} are all none: nothing to label")
    for key, least, most in (("LIMIT", 0, 2**40), ("CHUNK_SIZE", 1, 2**24), ("BATCH_SIZE", 1, 2**17)):
        check_range(settings, key, least, most)
    check_range(settings, "NUM_WORKERS", 0, _MOST_WORKERS)
    if not settings.OUTPUT_DIR or "\0" in settings.OUTPUT_DIR:
        raise InputError(f"OUTPUT_DIR is {settings.OUTPUT_DIR!r}, allowed: a folder")
    check_local("OUTPUT_DIR", settings.OUTPUT_DIR)
    check_device("DEVICE", settings.DEVICE)
    return settings


def _check_task(task: str, group: CfgNode) -> None:
    if (group.SOURCE == "teacher") != bool(group.TEACHER):
        raise InputError(
            f"{task}.SOURCE is {group.SOURCE!r} and {task}.TEACHER {group.TEACHER!r}, allowed: both or neither name "
            "a teacher"
        )
    if not 0 <= group.THRESHOLD <= 1:
        raise InputError(f"{task}.THRESHOLD is {group.THRESHOLD}, allowed: 0 to 1")
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
