"""The contract of a teacher, a model that labels images, and teachers by name.

A teacher is a callable: a list of N images in, a list of N dicts of tensors out. It has four attributes, tuples of
class names, and of the unit of depth, that are empty for what it does not label:

- ``box_names``: then each dict has ``boxes`` (M x 4 floats, XYXY in pixels of that image), ``scores`` (M floats, 0
  to 1) and ``labels`` (M integers, 0 to len(box_names) - 1), in any order; M may be 0;
- ``sem_seg_names``: then each dict has ``probabilities`` (K x h x w floats, 0 to 1, K = len(sem_seg_names)). The map
  may have any size and is resized to the image bilinearly; the greatest of a pixel's K values is its confidence. A
  teacher of many classes that has no need to be resized may give ``sem_seg`` (H x W integers, 0 to K - 1) with
  ``sem_seg_scores`` (H x W floats, 0 to 1) in place of it, in the image's own size;
- ``class_names``: then each dict has ``class_scores`` (K floats, 0 to 1, K = len(class_names));
- ``depth_units``, ("metres",) or ("relative",): then each dict has ``depth`` (h x w floats over 0 that grow with the
  distance), of any size; it is resized to the image bilinearly.

An image is 3 x H x W uint8 RGB on the CPU; each of the list has a size of its own, and the teacher resizes, normalises
and batches as its model wants. It must not change the images themselves, which go to other teachers, too. What it
gives may be on any device and in any floating type. It gives *all* it sees: thresholds, class lists and remapping are
applied to it afterwards (``filter``), as are the checks: what breaks this contract for an image costs that image this
label, and is recorded with its reason.

A teacher that raises is called again with each of its images alone, so that one image too large does not cost the
others their labels. Gradients are off when it is called.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from d2go_fbnetv5.data.registry import Factory, call_with_options
from d2go_fbnetv5.tasks.base import DEPTH_UNITS, DatasetInfo
from d2go_fbnetv5.utils.errors import USER_ERRORS, InputError, sentence
from d2go_fbnetv5.utils.registry import Registry


class Teacher(Protocol):
    """See this module's docstring; a class may inherit from this one for the defaults."""

    box_names: tuple[str, ...] = ()
    sem_seg_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    depth_units: tuple[str, ...] = ()

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]: ...


_TEACHERS: Registry[Factory] = Registry("teacher")


def register_teacher(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a function or class known by ``name``; called with ``device`` (a torch.device, where the model
    is to run) and the options of ``build_teacher``, it gives the teacher.

    Raises ValueError if the name is taken.
    """
    return _TEACHERS.register(name)


def list_teachers() -> list[str]:
    """Return the names of all registered teachers."""
    return _TEACHERS.names()


def build_teacher(name: str, /, device: torch.device | str = "cpu", **options: Any) -> Teacher:
    """Build the teacher of a registered name, or of a function of one's own, ``module:function``.

    A function is called as registered ones are, with ``device`` and the options, and gives the teacher. Its module is
    looked for where Python looks, and in the current folder.

    Raises:
        ValueError: an unknown name or option, naming those allowed; a module or function that does not exist, or
            raises; what the function gives is no teacher.
        Whatever building a teacher of ours raises.
    """
    what = f"teacher {name!r}"
    factory = load_function(name, what) if ":" in name else _TEACHERS[name]
    options = {"device": torch.device(device), **options}
    if getattr(factory, "__module__", "").startswith(_OURS):
        return call_with_options(what, factory, options)
    with users_code(f"{what} cannot be built"):
        teacher = call_with_options(what, factory, options)
        teacher_info(name, teacher)
    return teacher


def teacher_info(name: str, teacher: Any) -> DatasetInfo:
    """Return what a teacher labels. ValueError, with its name, if it breaks the contract."""
    names: dict[str, Any] = {}
    for attribute in DatasetInfo.KINDS:
        value = getattr(teacher, attribute, () if attribute == "depth_units" else None)
        if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"teacher {name!r}: {attribute} is {value!r}, it must be a tuple of strings")
        names[attribute] = tuple(value)
    if not callable(teacher):
        raise InputError(f"teacher {name!r} is a {type(teacher).__name__}, which cannot be called")
    if not any(names.values()):
        raise InputError(f"teacher {name!r} labels nothing: {', '.join(DatasetInfo.KINDS)} are empty")
    units = names["depth_units"]
    if units and (len(units) > 1 or units[0] not in DEPTH_UNITS):
        raise InputError(
            f"teacher {name!r}: depth_units is {units!r}, allowed is one of {', '.join(DEPTH_UNITS)}"
        )
    return DatasetInfo(**names)


def load_module(name: str, what: str) -> ModuleType:
    """Load a module that is looked for where Python looks, and in the current folder.

    Args:
        what: what names it, for messages.

    Raises:
        ValueError: there is no such module, or it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there
    with users_code(f"{what}: module {name!r} cannot be imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
            raise InputError(
                f"{what}: there is no module {error.name!r} along Python's path or in {os.getcwd()}"
            ) from None


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Blame the user's own code for what it raises in the block: one sentence, with the line of that code.

    Raises:
        ValueError: begins with ``what``.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {type(error).__name__}: {sentence(error)}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The line of the user's own code that an error comes from, else that of a library."""
    if isinstance(error, SyntaxError):
        return ""  # its message has it
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [
        frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix, _PACKAGE))
    ]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in (own or frames)[-1:])


_PACKAGE = str(Path(__file__).parents[1])
_OURS = f"{__package__.partition('.')[0]}."


def load_function(name: str, what: str) -> Factory:
    """Load the function of ``module:function``, its module as `load_module` finds it.

    Raises:
        ValueError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    module = load_module(module_name, what)
    function = getattr(module, function_name, None)
    if not callable(function):
        there = sorted(key for key, value in vars(module).items() if callable(value) and key[:1] != "_")
        raise InputError(
            f"{what}: module {module_name!r} has no function {function_name!r}, it has {', '.join(there) or 'none'}"
        )
    return function
