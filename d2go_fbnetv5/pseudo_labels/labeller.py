"""From samples to labels: each task's labels come from a teacher or from the sample itself."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.config import as_dict
from d2go_fbnetv5.pseudo_labels.filter import (
    Boxes,
    ClassMap,
    OutputError,
    filter_boxes,
    filter_class,
    filter_depth,
    filter_map,
    map_boxes,
    map_label_map,
)
from d2go_fbnetv5.pseudo_labels.settings import FIELDS, OF_CLASSES, names_and_remap
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, build_teacher, teacher_info
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError, Terminated

logger = logging.getLogger(__name__)


@dataclass
class Labels:
    """An image's labels; None is "not labelled for this task".

    Attributes:
        histograms: of a teacher's confidences, by task.
        problems: the reason why a task has no label, by task, where its source gave a wrong one.
    """

    class_label: int | None = None
    boxes: Boxes | None = None
    sem_seg: np.ndarray | None = None
    depth: np.ndarray | None = None
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class _Source:
    """The source of a task's labels. ``teacher`` is the place in the list of teachers, None for the data set."""

    teacher: int | None


@dataclass
class _ClassSource(_Source):
    """The source of labels that are classes."""

    classes: ClassMap
    threshold: float


class Labeller:
    """Labels samples as the settings say. A teacher that several tasks name with the same options runs once.

    Attributes:
        info: the names of what is labelled.

    Raises:
        ValueError: a task and its source do not fit together. Whatever building a teacher raises.
    """

    def __init__(self, settings: CfgNode, dataset_info: DatasetInfo, device: torch.device) -> None:
        self._device = device
        self._teachers: list[Teacher] = []
        self._sources: dict[str, _Source] = {}
        places: dict[str, int] = {}
        names: dict[str, Any] = {}
        for task, attribute in FIELDS.items():
            group = settings[task]
            if group.SOURCE == "none":
                continue
            place, info = None, dataset_info
            if group.SOURCE == "teacher":
                options = as_dict(group.OPTIONS)
                place = places.setdefault(
                    json.dumps([group.TEACHER, sorted(options.items())]), len(self._teachers)
                )
                if place == len(self._teachers):
                    self._teachers.append(_build(task, group.TEACHER, device, options))
                info = teacher_info(group.TEACHER, self._teachers[place])
            if task in OF_CLASSES:
                classes = _class_map(task, group, info)
                self._sources[task] = _ClassSource(place, classes, group.THRESHOLD)
                names[attribute] = classes.names
            else:
                self._sources[task] = _Source(place)
                names[attribute] = _names(task, group, info)
        self.info = DatasetInfo(**names)

    def has_teacher(self, task: str) -> bool:
        return task in self._sources and self._sources[task].teacher is not None

    @torch.no_grad()
    def __call__(self, samples: Sequence[dict[str, Any]]) -> list[Labels]:
        """The labels of N samples, ``image`` 3 x H x W uint8 and, where they are kept, their own labels."""
        images = [sample["image"] for sample in samples]
        answers = [self._ask(teacher, images) for teacher in self._teachers] if samples else []
        return [
            self._label(sample, [given[number] for given in answers]) for number, sample in enumerate(samples)
        ]

    def _label(self, sample: dict[str, Any], answers: list[dict[str, Any] | OutputError]) -> Labels:
        labels, size = Labels(), tuple(sample["image"].shape[-2:])
        for task, source in self._sources.items():
            output = None if source.teacher is None else answers[source.teacher]
            try:
                if isinstance(output, OutputError):
                    raise output
                if isinstance(source, _ClassSource):
                    if output is None:
                        _keep(task, sample, size, source.classes, labels)
                    else:
                        _filter(task, output, size, source, labels)
                elif output is not None:
                    labels.depth = filter_depth(output, size)
                elif "depth" in sample:
                    labels.depth = sample["depth"].numpy()
            except OutputError as error:
                labels.problems[task] = str(error)
        return labels

    def _ask(self, teacher: Teacher, images: list[torch.Tensor]) -> list[dict[str, Any] | OutputError]:
        """Return what a teacher gives for each image, or why it gives nothing."""
        versions = [image._version for image in images]
        outputs: Any = None
        failure: BaseException | None = None
        with _noting_ctrl_c() as pressed:
            try:
                outputs = teacher(list(images))
            except KeyboardInterrupt as error:
                if pressed or isinstance(error, Terminated):
                    raise
                failure = error
            except (Exception, SystemExit) as error:  # whatever it raises, the other images have their labels
                failure = error
        if versions != [image._version for image in images]:
            raise InputError("a teacher has changed the images that it was given; it must work on copies")
        if failure is None and (not isinstance(outputs, list | tuple) or len(outputs) != len(images)):
            failure = OutputError(
                f"the teacher gives {_describe(outputs)} for {len(images)} images, expected a list of as many dicts"
            )
        if failure is not None:
            return self._retry(teacher, images, failure)
        return [
            output
            if isinstance(output, dict)
            else OutputError(f"the teacher gives a {type(output).__name__} for an image, expected a dict")
            for output in outputs
        ]

    def _retry(
        self, teacher: Teacher, images: list[torch.Tensor], failure: BaseException
    ) -> list[dict[str, Any] | OutputError]:
        """One by one, so that an image that is too large, say, does not cost the others their labels."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # raises if the GPU is lost, and with it every other image
        if len(images) > 1:
            return [self._ask(teacher, [image])[0] for image in images]
        if isinstance(failure, OutputError):
            return [failure]
        logger.debug("a teacher failed", exc_info=failure)
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        return [OutputError(f"the teacher failed with {reason}")]


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """A list that is no longer empty when SIGINT has come, which tells it from a teacher's own KeyboardInterrupt."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _build(task: str, name: str, device: torch.device, options: dict[str, Any]) -> Teacher:
    try:
        return build_teacher(name, device, **options)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"{task}: {error}") from error


def _names(task: str, group: CfgNode, info: DatasetInfo) -> tuple[str, ...]:
    """Return the names that a task's source has, its classes or the unit of depth."""
    found = getattr(info, FIELDS[task])
    if not found:
        there = ", ".join(name for name, field in FIELDS.items() if getattr(info, field)) or "nothing"
        what = f"teacher {group.TEACHER!r}" if group.SOURCE == "teacher" else "the data set of IMAGES"
        raise InputError(
            f"{task}.SOURCE is {group.SOURCE!r}, but {what} has no {FIELDS[task]}; it labels {there}"
        )
    return found


def _class_map(task: str, group: CfgNode, info: DatasetInfo) -> ClassMap:
    names, remap = names_and_remap(group)
    classes = ClassMap(task, _names(task, group, info), remap, names, complete=group.SOURCE == "teacher")
    if task == "SEG" and len(classes.names) > info.sem_seg_ignore:
        raise InputError(
            f"SEG has {len(classes.names)} classes, allowed are at most {info.sem_seg_ignore}; "
            f"SEG.NAMES and SEG.REMAP choose"
        )
    return classes


def _filter(
    task: str, output: dict[str, Any], size: tuple[int, int], source: _ClassSource, labels: Labels
) -> None:
    classes, threshold = source.classes, source.threshold
    if task == "CLS":
        labels.class_label, labels.histograms[task] = filter_class(output, classes, threshold)
    elif task == "DET":
        labels.boxes = filter_boxes(output, size, classes, threshold)
        if labels.boxes.histogram is not None:
            labels.histograms[task] = labels.boxes.histogram
    else:
        labels.sem_seg, labels.histograms[task] = filter_map(output, size, classes, threshold)


def _keep(
    task: str, sample: dict[str, Any], size: tuple[int, int], classes: ClassMap, labels: Labels
) -> None:
    if task == "CLS" and "class_label" in sample:
        label = int(classes.labels[sample["class_label"]])
        labels.class_label = label if label >= 0 else None
    elif task == "DET" and "boxes" in sample:
        labels.boxes = map_boxes(sample, size, classes)
    elif task == "SEG" and "sem_seg" in sample:
        labels.sem_seg = map_label_map(sample["sem_seg"], classes)


def _describe(outputs: Any) -> str:
    return f"{len(outputs)} dicts" if isinstance(outputs, list | tuple) else f"a {type(outputs).__name__}"
