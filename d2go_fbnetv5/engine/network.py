"""``network.json``: what a run trains, in its folder from before the first step on.

With it and a checkpoint the folder is all that a prediction needs. It can be moved, and the search that the topology
came from deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from d2go_fbnetv5.arch import Backbone, Topology, list_families
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.models.base import Names
from d2go_fbnetv5.models.search_heads import SET_ELSEWHERE
from d2go_fbnetv5.models.several_heads import SeveralHeads, joint_features
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import is_number
from d2go_fbnetv5.utils.options import bind_options, require, shown
from d2go_fbnetv5.utils.text_files import read_json_object

NETWORK_FILE = "network.json"
_FORMAT = 1
_IMAGES = ("short_side", "crop", "max_size")  # of an EvalTransform
_LARGEST = 2**16  # pixels of a side


@dataclass(frozen=True)
class Network:
    """A model without its weights, and how evaluation prepares its images.

    Attributes:
        model: its MODEL.META_ARCHITECTURE.
        family: of the backbone.
        topology: as it was found; the backbone is pruned for the model's head.
        names: of the classes, in the order of their labels; by the tasks' names where the model has several.
        head: options of the model's class.
        pixel_mean, pixel_std: of the images, RGB in 0..255.
        images: what evaluation does to an image before the model sees it.
        imports, import_folders: the user's modules that register the model or its family, as IMPORTS has them; they are
            imported when the file is read.
    """

    model: str
    family: str
    topology: Topology
    names: Names
    head: dict[str, Any]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    images: EvalTransform
    imports: tuple[str, ...] = ()
    import_folders: tuple[str, ...] = ()

    def build(self, kind: type[SearchedModel]) -> SearchedModel:
        """Build the model, of that class, with its first weights.

        Raises:
            InputError: the class has no such option, or it is of another type or out of range.
        """
        try:
            return kind(**self.arguments(kind))
        except InputError as error:
            raise InputError(f"{NETWORK_FILE}: {error}") from error

    def arguments(self, kind: type[SearchedModel]) -> dict[str, Any]:
        """Return the arguments of the model's class. Raises as `build`, but for ranges."""
        options, names = checked_head(kind, self.head), self.names
        if isinstance(names, dict) is not issubclass(kind, SeveralHeads):
            allowed = "lists by tasks' names" if issubclass(kind, SeveralHeads) else "a list"
            raise InputError(f"names is {shown(names)}, allowed for a {kind.__name__}: {allowed}")
        count: Any = len(names) if isinstance(names, tuple) else {task: len(of) for task, of in names.items()}
        return {
            "backbone": Backbone(self.family, self.topology, joint_features(kind.parts(options).values())),
            "num_classes": count,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            **options,
        }

    def task(self, kind: type[SearchedModel]) -> str:
        """Return what the model, of that class, predicts: "det", or "cls+det" for several tasks."""
        return "+".join(kind.parts(self.head))

    def write(self, folder: str | os.PathLike[str], kind: type[SearchedModel]) -> None:
        """Write NETWORK_FILE, of a model of that class, into a folder that exists."""
        content = {
            "format": _FORMAT,
            "model": self.model,
            "task": self.task(kind),  # this and the outputs are for whoever reads the file
            "family": self.family,
            "topology": self.topology.to_dict(),
            "outputs": list(joint_features(kind.parts(self.head).values())),
            "names": self.names,
            "head": self.head,
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
            "images": {key: getattr(self.images, key) for key in _IMAGES},
            "imports": list(self.imports),
            "import_folders": list(self.import_folders),
        }
        write_atomically(Path(folder, NETWORK_FILE), json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Network:
        """Read NETWORK_FILE of a folder.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged; names the file, the key, what was found and what is allowed.
        """
        path = Path(folder, NETWORK_FILE)
        content = read_json_object(path)
        try:
            return cls._parse(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Network:
        content = {"imports": [], "import_folders": [], **content}
        require(content, "format", lambda value: value == _FORMAT, f"{_FORMAT}, which this version reads")
        imports, folders = (
            require(content, key, _is_texts, "a list of texts") for key in ("imports", "import_folders")
        )
        import_modules(CfgNode({"IMPORTS": imports, "IMPORT_FOLDERS": folders}))
        require(content, "model", lambda value: isinstance(value, str), "a text")
        require(content, "family", lambda value: value in list_families(), f"one of {list_families()}")
        require(content, "names", is_names, "a list of one text or more, or such a list for each task")
        require(content, "head", lambda value: isinstance(value, dict), "an object of options")
        for key in ("pixel_mean", "pixel_std"):
            require(content, key, _is_colour, "three finite numbers")
        require(content, "pixel_std", lambda value: min(value) > 0, "positive")
        images = require(content, "images", lambda value: isinstance(value, dict), "an object")
        for key in _IMAGES:
            require(images, key, _is_size, "null, a number of pixels, or for a crop [height, width]")
        sizes: dict[str, Any] = {
            key: tuple(size) if isinstance(size := images[key], list) else size for key in _IMAGES
        }
        return cls(
            content["model"],
            content["family"],
            Topology.from_dict(content.get("topology")),
            to_names(content["names"]),
            content["head"],
            tuple(content["pixel_mean"]),
            tuple(content["pixel_std"]),
            EvalTransform(**sizes),
            tuple(imports),
            tuple(folders),
        )


def checked_head(kind: type[SearchedModel], head: Mapping[str, Any], what: str = "head") -> dict[str, Any]:
    """Return the options of a model's class (`bind_options`) but for those that a configuration has other keys for."""
    return bind_options(what, kind, head, SET_ELSEWHERE)


def is_names(value: Any) -> bool:
    """Return whether a value is a list of class names, or has one for each of some tasks."""
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return bool(lists) and all(_is_texts(names) and names for names in lists)


def to_names(value: Any) -> Names:
    """Return what `is_names` has found good."""
    if isinstance(value, dict):
        return {task: tuple(names) for task, names in value.items()}
    return tuple(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return value is None or all(
        isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST for side in sides
    )
