"""FBNetV5: neural architecture search for many vision tasks in one run."""

import importlib
from typing import TYPE_CHECKING, Any

from d2go_fbnetv5.version import __version__

if TYPE_CHECKING:
    from d2go_fbnetv5.arch import (
        Backbone,
        Family,
        Supernet,
        Topology,
        build_family,
        list_families,
        register_family,
    )
    from d2go_fbnetv5.arch.topology_file import load_topologies, save_topologies
    from d2go_fbnetv5.data import build_dataset, register_dataset
    from d2go_fbnetv5.export import export_model, register_format
    from d2go_fbnetv5.hub import from_pretrained, push_to_hub, save_pretrained
    from d2go_fbnetv5.pseudo_labels import Teacher, register_teacher
    from d2go_fbnetv5.search import MultitaskSearch
    from d2go_fbnetv5.tasks import DatasetInfo, Task, build_task, register_label, register_task
    from d2go_fbnetv5.zoo import create_backbone, create_model, list_models

__all__ = [
    "Backbone",
    "DatasetInfo",
    "Family",
    "MultitaskSearch",
    "Supernet",
    "Task",
    "Teacher",
    "Topology",
    "__version__",
    "build_dataset",
    "build_family",
    "build_task",
    "create_backbone",
    "create_model",
    "export_model",
    "from_pretrained",
    "list_families",
    "list_models",
    "load_topologies",
    "push_to_hub",
    "register_dataset",
    "register_family",
    "register_format",
    "register_label",
    "register_task",
    "register_teacher",
    "save_pretrained",
    "save_topologies",
]

# Where each name comes from. Its module is imported when it is first asked for, so that importing us is quick.
_HOMES = {
    "arch": (
        "Backbone",
        "Family",
        "Supernet",
        "Topology",
        "build_family",
        "list_families",
        "register_family",
    ),
    "arch.topology_file": ("load_topologies", "save_topologies"),
    "data": ("build_dataset", "register_dataset"),
    "export": ("export_model", "register_format"),
    "hub": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "pseudo_labels": ("Teacher", "register_teacher"),
    "search": ("MultitaskSearch",),
    "tasks": ("DatasetInfo", "Task", "build_task", "register_label", "register_task"),
    "zoo": ("create_backbone", "create_model", "list_models"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
