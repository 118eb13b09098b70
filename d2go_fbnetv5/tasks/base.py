"""The task contract: a head, a loss and a metric, found by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options
from d2go_fbnetv5.utils.registry import Registry

Sample = dict[str, Any]
DEPTH_UNITS = ("metres", "relative")


@dataclass(frozen=True)
class DatasetInfo:
    """The labels of a data set. An empty tuple means "no labels of that kind".

    Attributes:
        class_names: names of the image classes; ``class_label`` c is ``class_names[c]``.
        box_names: names of the box classes; ``box_labels`` value c is ``box_names[c]``.
        sem_seg_names: names of the pixel classes; ``sem_seg`` value c is ``sem_seg_names[c]``.
        sem_seg_ignore: the ``sem_seg`` value of pixels that are neither trained on nor evaluated.
        depth_units: of a ``depth``, one of `DEPTH_UNITS`: ("metres",), or ("relative",) where it is known up to scale
            and shift alone. It grows with the distance; 0 is a pixel without depth.
        KINDS: the fields that name what is labelled.
    """

    class_names: tuple[str, ...] = ()
    box_names: tuple[str, ...] = ()
    sem_seg_names: tuple[str, ...] = ()
    sem_seg_ignore: int = 255
    depth_units: tuple[str, ...] = ()

    KINDS: ClassVar[tuple[str, ...]] = ("class_names", "box_names", "sem_seg_names", "depth_units")


class Evaluator(Protocol):
    """Collects predictions, then turns them into metrics.

    The truth is read from ``inputs``, where it lies in pixels of the original image, ``height`` x ``width``. An input
    without the task's label is skipped, and every ``image_id`` is counted once, also when several ranks saw it. A
    metric of nothing is NaN.
    """

    def reset(self) -> None: ...

    def process(self, inputs: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Takes N samples and what the task's evaluation forward gave for them."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics over all ranks, the same on each. With several ranks every one of them must call it."""


class Task(nn.Module):
    """A head with its loss and its metric. Knows nothing of the architecture that makes its features.

    A constructor takes ``(channels, info, **options)``: the channels of each feature by name, what the data set
    labels, and options with defaults, which ``build_task`` checks by name and type.

    Attributes:
        name: set by ``register_task``.
        in_features: names of the features that the head reads, such as ``("path2",)``; a class has the paper's.
        primary_metric: the key of ``evaluator(...).evaluate()`` that architectures are compared by.
        higher_is_better: whether a greater primary metric is the better one.
    """

    name: str
    in_features: tuple[str, ...]
    primary_metric: str
    higher_is_better: bool = True

    def forward(
        self, features: Mapping[str, Tensor], batch: Sequence[Sample]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, predictions in evaluation.

        Args:
            features: for each of ``in_features`` an N x C x h x w tensor, computed from
                ``tasks.images.batch_images(batch, ...)`` of this very batch.
            batch: N samples. A sample without this task's label has no part in the loss. Evaluation reads no label.

        Returns:
            Training: scalar losses whose keys begin with ``loss_``; ``{}`` if no sample has the task's label.
            Evaluation: N output dicts. Boxes and points are in pixels of each sample's own (unpadded) ``image``; maps
            have the sample's ``height`` and ``width``, in which evaluation has its labels.
        """
        raise NotImplementedError

    def evaluator(self, info: DatasetInfo) -> Evaluator:
        raise NotImplementedError


TaskClass = TypeVar("TaskClass", bound=type[Task])
_TASKS: Registry[type[Task]] = Registry("task")
_HEADS: dict[str, Registry[type[Task]]] = {}  # other heads for tasks, by the task's name


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator that makes a task known to ``build_task`` and sets its ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(cls: TaskClass) -> TaskClass:
        _TASKS.add(name, cls)
        cls.name = name
        return cls

    return register


def register_head(task: str, name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator that makes another head for a registered task known to ``build_task``, as ``head=name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(cls: TaskClass) -> TaskClass:
        _HEADS.setdefault(task, Registry(f"head of task {task!r}")).add(name, cls)
        cls.name = task
        return cls

    return register


def list_tasks() -> list[str]:
    """Return the registered names, sorted."""
    return _TASKS.names()


def build_task(name: str, channels: Mapping[str, int], info: DatasetInfo, /, **options: Any) -> Task:
    """Builds a registered task.

    Args:
        name: one of ``list_tasks()``.
        channels: channels of each feature by name, such as ``Supernet.channels``.
        info: what the data set labels.
        options: the task's own options. Lists are taken where the default is a tuple. ``head`` names another head that
            was registered for the task (``register_head``), and the others are that one's.

    Raises:
        ValueError: an unknown name or option, an option of another type than its default or out of range, a feature
            that the network lacks, or a data set without the names that the task needs.
    """
    cls = _TASKS[name]
    if name in _HEADS and options.get("head"):
        cls = _HEADS[name][options.pop("head")]
    missing = [feature for feature in cls.in_features if feature not in channels]
    if missing:
        raise InputError(f"task {name!r} needs the features {missing}; the network has {sorted(channels)}")
    given = list(inspect.signature(cls).parameters)[:2]  # channels and info
    return cls(channels, info, **bind_options(f"task {name!r}", cls, options, given))


def require_names(task: str, field: str, info: DatasetInfo) -> tuple[str, ...]:
    """Return the names that ``info`` has under ``field``, or a ValueError that says the task cannot do without."""
    names = getattr(info, field)
    if not names:
        raise InputError(
            f"task {task!r} needs {field}, but the data set has none (its DatasetInfo.{field} is empty)"
        )
    return names


def require_feature(task: str, feature: str, channels: Mapping[str, int]) -> int:
    """Return the channels of the feature that option ``feature`` names, or a ValueError that says which there are."""
    if feature not in channels:
        raise InputError(
            f"option 'feature' of task {task!r} is {feature!r}; allowed: {', '.join(sorted(channels))}"
        )
    return channels[feature]
