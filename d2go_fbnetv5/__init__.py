"""FBNetV5: neural architecture search for many vision tasks in one run."""

from d2go_fbnetv5.arch import Backbone, Supernet, Topology, build_family
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.tasks import Task, register_task
from d2go_fbnetv5.version import __version__

__all__ = [
    "Backbone",
    "MultitaskSearch",
    "Supernet",
    "Task",
    "Topology",
    "__version__",
    "build_family",
    "register_task",
]
