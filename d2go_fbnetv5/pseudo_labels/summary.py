"""Sums a labelling up: labels of each class, how sure the teachers were, what is not labelled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.data.index_arrays import NO_LABEL, MultitaskIndex
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import MISSING, format_count, format_plural, format_share

_BARS = "▁▂▃▄▅▆▇█"
_MOST_CLASSES = 20  # in a table; summary.json has all
_UNITS = {"CLS": "images", "DET": "boxes", "SEG": "pixels"}


def summarize(index: MultitaskIndex, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a merged set, as plain values.

    Args:
        index: the set's.
        statistics: what the labelling counted, in the form that ``output`` describes.

    Returns:
        ``images``: in the set; ``skipped``: that could not be read; ``missing``: those of them that are not there or
        cannot be opened; ``unlabelled``: in the set, of which no task has a label; and for each task that is
        labelled, "CLS", "DET", "SEG" and "DEPTH" (of which there are images and problems alone):

        - ``images``: with a label of the task, ``problems``: whose teacher gave a wrong one;
        - ``classes``: of each class the images, boxes or pixels that are labelled so, by name;
        - ``scores``: how many of the teacher's scores are in each of equal parts of 0 to 1, before the threshold
          (of images, boxes or pixels; missing where the labels are the data set's own);
        - DET: ``given``, ``dropped_class``, ``below_threshold``, ``without_area`` and ``kept`` boxes, ``empty``: the
          labelled images without any, ``class_scores``: ``scores`` of each class;
        - SEG: ``ignored``: pixels that are don't care, and their share of all, ``ignored_share``.
    """
    summary: dict[str, Any] = {key: statistics[key] for key in ("images", "skipped", "missing", "unlabelled")}
    info = index.info
    if "CLS" in statistics and (labels := index.class_labels) is not None:
        counts = np.bincount(labels[labels != NO_LABEL], minlength=len(info.class_names))
        summary["CLS"] = _task(statistics["CLS"], info.class_names, counts.tolist())
    if "DET" in statistics:
        found = dict(statistics["DET"])
        by_class = found.pop("scores", None)
        boxes = found.pop("boxes", [0] * len(info.box_names))  # missing where no image has a label
        task = _task(found, info.box_names, boxes) | {
            key: found.get(key, 0)
            for key in ("given", "dropped_class", "below_threshold", "without_area", "kept")
        }
        if index.boxes is not None:
            task["empty"] = int(((np.diff(index.boxes.starts) == 0) & index.has_boxes).sum())
        if by_class is not None:
            task["scores"] = [sum(column) for column in zip(*by_class, strict=True)]
            task["class_scores"] = dict(zip(info.box_names, by_class, strict=True))
        summary["DET"] = task
    if "SEG" in statistics:
        found = statistics["SEG"]
        pixels, ignored = found.get("pixels", [0] * len(info.sem_seg_names)), found.get("ignored", 0)
        total = ignored + sum(pixels)
        task = {"ignored": ignored, "ignored_share": ignored / total if total else None}
        summary["SEG"] = _task(found, info.sem_seg_names, pixels) | task
    if "DEPTH" in statistics:
        summary["DEPTH"] = dict(statistics["DEPTH"])
    return summary


def write_summary(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write a summary as JSON, whole or not at all."""
    # In ASCII: a class may be named by a folder whose name is no UTF-8.
    write_atomically(path, json.dumps(summary, indent=1) + "\n")


def summary_tables(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Make a headline, a table of the tasks, and for each task one of its most frequent classes."""
    headline = (
        f"{format_plural(summary['images'], 'image', 'images')}, of which {summary['unlabelled']} have no label of any "
        f"task; {format_plural(summary['skipped'], 'more file', 'more files')} could not be read"
    )
    tasks = [task for task in _UNITS if task in summary]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("task")
    for title in ("images", "problems", "labels", "left out"):
        table.add_column(title, justify="right")
    table.add_column("scores, 0 to 1", no_wrap=True)
    for task in tasks:
        found = summary[task]
        table.add_row(
            task,
            format_count(found["images"]),
            format_count(found["problems"]),
            f"{format_count(sum(found['classes'].values()))} {_UNITS[task]}",
            _left_out(task, found, summary["images"]),
            histogram_bars(found["scores"]) if "scores" in found else MISSING,
        )
    if "DEPTH" in summary:
        found = summary["DEPTH"]
        left = f"{format_count(summary['images'] - found['images'])} images"
        table.add_row(
            "DEPTH", *map(format_count, (found["images"], found["problems"])), "maps", left, MISSING
        )
    return [headline, table, *(_class_table(task, summary[task]["classes"]) for task in tasks)]


def histogram_bars(counts: Sequence[int]) -> str:
    """Return a histogram as one line of blocks, the highest for the most frequent part; a space for an empty one."""
    most = max(counts, default=0)
    return "".join(_BARS[(count * len(_BARS) - 1) // most] if count else " " for count in counts)


def _task(found: Mapping[str, Any], names: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    task = {key: found[key] for key in ("images", "problems")}
    task["classes"] = dict(zip(names, counts, strict=True))
    return task | ({"scores": found["scores"]} if "scores" in found else {})


def _left_out(task: str, found: Mapping[str, Any], images: int) -> str:
    if task == "CLS":
        return f"{format_count(images - found['images'])} images"
    if task == "DET":
        return f"{format_count(found['given'] - found['kept'])} boxes; empty images: {format_count(found['empty'])}"
    return f"{format_share(found['ignored_share'])} don't care"


def _class_table(task: str, classes: Mapping[str, int]) -> Table:
    total, unit = sum(classes.values()), _UNITS[task]
    table = Table(box=SIMPLE_HEAD)
    table.add_column(f"{task} class")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    ordered = sorted(classes.items(), key=lambda entry: -entry[1])
    shown = [(name, count) for name, count in ordered[:_MOST_CLASSES] if count]
    for name, count in shown:
        table.add_row(Text(name), format_count(count), format_share(count / total))  # no markup
    rest = [count for _, count in ordered[len(shown) :]]
    if rest:
        words = f"{len(rest)} more, {sum(count == 0 for count in rest)} of them without any"
        table.add_row(words, format_count(sum(rest)), format_share(sum(rest) / total if total else None))
    return table
