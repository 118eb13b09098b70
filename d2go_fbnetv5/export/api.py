"""From a trained model to a checked file with its model.json."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.export.formats.base import ExportSpec, get_format
from d2go_fbnetv5.export.image_sizes import STEP, fitting_size, is_whole, smallest_side, usual_size
from d2go_fbnetv5.export.measure.check import CheckFailedError, Report, check
from d2go_fbnetv5.export.metadata import describe, output_names
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, SearchedModel, SeveralHeads
from d2go_fbnetv5.models.base import Names
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.text_files import read_json

DESCRIPTION = "model.json"
_CHECKED = 3  # images of each size, besides an empty one


@dataclass(frozen=True)
class Calibration:
    """The images that int8 learns the ranges of activations from.

    Attributes:
        images: 1 x 3 x H x W in 0..255, like those that the model will see; they are resized if the file does not
            take their size.
        data: where they are from, for model.json.
    """

    images: Iterable[Tensor]
    data: str = ""


@dataclass(frozen=True)
class Exported:
    """An exported file, its model.json's content, and what its check found."""

    path: Path
    description: dict[str, Any]
    report: Report


def export_model(
    model: SearchedModel,
    format: str,
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    names: Sequence[str] | Mapping[str, Sequence[str]] = (),
    transform: EvalTransform | None = None,
    calibration: Calibration | None = None,
    pictures: Sequence[Tensor] = (),
    fixed_size: bool = False,
) -> Exported:
    """Writes a model as a file that needs neither this package nor Python, with its model.json, and checks it.

    The file is loaded again and compared with the model at two sizes, if it takes more than one, on ``pictures`` and
    on an empty image. Until it has passed it is named ``model.unchecked`` and replaces nothing.

    Args:
        model: one of ours, on any device; a copy of it is exported.
        format: one of `list_formats`, such as "executorch".
        folder: is made if it does not exist; gets the file, ``model`` with the format's suffix, and ``model.json``.
        size: (height, width) of images; `usual_size` by default.
        names: of the classes, their numbers by default; of several heads by their tasks' names.
        transform: how evaluation prepares images, for model.json.
        calibration: for int8, where the format has it; None for fp32.
        pictures: 3 x h x w in 0..255 to check with, made up by default.
        fixed_size: whether the file takes images of ``size`` alone, where the format has that: faster in
            ExecuTorch, and what accelerators ask for.

    Raises:
        ValueError: an unknown format, int8 or a fixed size for one that has none, a size that the model cannot take, a
            package that is missing, a folder that holds such a file or a model.json that is not an export's.
        CheckFailedError: the file does not compute what the model does. It stays, under its first name.
        OSError: the folder cannot be written; what was there before stays.
    """
    folder = Path(folder)
    kind = get_format(format, suffix=True, int8=calibration is not None, fixed_size=fixed_size)
    model = copy.deepcopy(model).cpu().eval()
    size = fitting_size(model, size or usual_size(model, transform))
    checked = _checked_names(model, names)
    kind.require()
    description = describe(model, size, checked, transform, kind.packages)
    path = folder / f"model{kind.suffix}"
    _refuse_other(path)
    folder.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_suffix(f".unchecked{kind.suffix}")

    any_size = isinstance(model, ImageClassifier) and (not kind.fixed_size or not is_whole(size))
    least = smallest_side(model)
    module, outputs = inference_module(model, any_size), output_names(model)
    images = list(calibration.images) if calibration is not None else None
    try:
        described = kind.export(module, unchecked, ExportSpec(size, least, outputs, images, fixed_size))
        if calibration is not None and images is not None:
            described["calibration"] = {"data": calibration.data, "images": len(images)}
        run = kind.load(unchecked, described)
        sizes = [size, _other_size(size, least)] if described["dynamic"] else [size]
        shown, int8 = _images(sizes, pictures), calibration is not None
        report = check(model, run, shown, int8, lambda: kind.load(unchecked, described, threshold=0.0))
        del run  # a runtime may hold the file
        description = {"format": format, **description, **described, "check": report.to_json()}
        # Whenever this is killed, model.json is of the file that it names, or that one is gone; and where the disk is
        # full, neither of the two is replaced.
        _write_description(unchecked, description)
        os.replace(unchecked, path)
        description = _write_description(path, description)
    except CheckFailedError as error:
        raise CheckFailedError(f"{unchecked}: {error}") from error
    except BaseException:
        unchecked.unlink(missing_ok=True)
        raise
    return Exported(path, description, report)


def _checked_names(model: SearchedModel, names: Sequence[str] | Mapping[str, Sequence[str]]) -> Names:
    """Return the names of a model's classes, numbers where there are none; an InputError where they are not as many."""
    singles = model.singles()
    given = names if isinstance(names, Mapping) else {task: names for task in singles if names}
    if given and set(given) != set(singles):
        raise InputError(
            f"names of classes of {', '.join(given)} are given, the model has {', '.join(singles)}"
        )
    found = {}
    for task, single in singles.items():
        count = single.num_classes
        found[task] = tuple(given.get(task, map(str, range(count))))
        if len(found[task]) != count:
            raise InputError(f"{len(found[task])} names of classes are given, the model has {count} classes")
    return found if isinstance(model, SeveralHeads) else next(iter(found.values()))


def _write_description(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Write what is known of the file ``path`` beside it, and return it."""
    description = {"file": path.name, **description}
    content = json.dumps(description, indent=1, allow_nan=False) + "\n"
    write_atomically(path.with_name(DESCRIPTION), content)
    return description


def _refuse_other(path: Path) -> None:
    """Raise an InputError if ``path`` would replace what no export has written.

    An export's folder has a model.json that says the format; a training of before network.json has one, too.
    """
    description, content = path.with_name(DESCRIPTION), None
    if not os.path.lexists(description):
        if os.path.lexists(path):
            raise InputError(f"{path} is there and is not of an export; choose another folder")
        return
    with contextlib.suppress(InputError):
        content = read_json(description)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{description} is not of an export; choose another folder")


def _other_size(size: tuple[int, int], least: int) -> tuple[int, int]:
    """Return a size of another shape, not much larger."""
    return max(least, size[0] - STEP), size[1] + STEP


def _images(sizes: Sequence[tuple[int, int]], pictures: Sequence[Tensor]) -> Iterator[Tensor]:
    """1 x 3 x H x W in 0..255: each picture, and an empty one, at each size."""
    if not pictures:
        generator = torch.Generator().manual_seed(0)
        pictures = [255 * torch.rand(3, 12, 16, generator=generator) for _ in range(_CHECKED)]
    for size in sizes:
        for picture in pictures:
            image = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
            yield image.clamp(0, 255)
        yield torch.full((1, 3, *size), 127.0)
