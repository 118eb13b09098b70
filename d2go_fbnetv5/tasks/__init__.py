"""Tasks: a head, a loss and a metric each. A new one is a class with ``@register_task(name)``."""

from d2go_fbnetv5.tasks.base import (
    DatasetInfo,
    Evaluator,
    Sample,
    Task,
    build_task,
    list_tasks,
    register_task,
)
from d2go_fbnetv5.tasks.classification import Classification
from d2go_fbnetv5.tasks.depth import DepthEstimation
from d2go_fbnetv5.tasks.detection import FasterRCNN
from d2go_fbnetv5.tasks.images import batch_images, image_sizes, padded_size
from d2go_fbnetv5.tasks.labels import register_label
from d2go_fbnetv5.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "DatasetInfo",
    "DepthEstimation",
    "Evaluator",
    "FasterRCNN",
    "Sample",
    "Segmentation",
    "Task",
    "batch_images",
    "build_task",
    "image_sizes",
    "list_tasks",
    "padded_size",
    "register_label",
    "register_task",
]
