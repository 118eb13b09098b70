"""A look at data sets before anything is trained on them: labels that are missing or are not what they seem."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.tasks.depth_metrics import has_depth
from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

# The label of each kind of names, what counts as one, and the built-in task that learns of it.
_KINDS = {
    "class_names": ("class_label", "image has a class_label", "cls"),
    "box_names": ("boxes", "image has a box that is no crowd", "det"),
    "sem_seg_names": ("sem_seg", "image has a label map", "seg"),
    "depth_units": ("depth", "image has a depth", "depth"),
}
_NUM_SAMPLES = 16
_METRES = (0.05, 300.0)  # where the middle one of a set's depths may be


def look_at_sets(where: str, sets: Mapping[str, Any]) -> None:
    """Warn of labels of which there are none or that say nothing; refuse sets that nothing can be learnt of.

    Some images of each set, always the same, are read together with their labels, so that files that are missing or
    broken, of another size than the index says, or of unknown values come up now and not in the middle of a run.

    Args:
        where: the key that names the sets, such as "DATASETS.TRAIN".
        sets: by name; they have the same ``info``. A set that counts its labels has ``label_counts``: of
            "class_label", "sem_seg" and "depth" the images that have one, of "boxes" the boxes. A set that reads files
            has ``image_path``.

    Raises:
        InputError: no image has any label; or what reading a sample raises.
        FileNotFoundError: a file of a sample does not exist.
    """
    _count_labels(where, sets)
    for name, dataset in sets.items():
        if hasattr(dataset, "image_path"):
            _read_some(f"{where}, {name}", dataset)


def _count_labels(where: str, sets: Mapping[str, Any]) -> None:
    info = next(iter(sets.values())).info
    named = [field for field in _KINDS if getattr(info, field)]
    # Of some sets it is not known; those are taken to be labelled.
    counts = [getattr(dataset, "label_counts", None) for dataset in sets.values()]
    without = [
        field
        for field in named
        if all(count is not None and count.get(_KINDS[field][0]) == 0 for count in counts)
    ]
    names = ", ".join(sets)
    if named and without == named:
        what = " and no ".join(_KINDS[field][1] for field in without)
        raise InputError(f"{where}, {names}: no {what}, so there is nothing to learn or to judge by")
    if len(info.class_names) == 1:
        logger.warning(
            "%s, %s: class_names has one name, %s, so nothing is told apart and whatever is guessed is right",
            *(where, names, info.class_names[0]),
        )
    for field in without:
        _, what, task = _KINDS[field]
        logger.warning(
            "%s, %s: there are %s, but no %s: %s learns nothing, what a search finds for it is chance, and its metrics "
            "mean nothing",
            *(where, names, field, what, task),
        )


def _read_some(where: str, dataset: Any) -> None:
    places = np.random.default_rng(0).choice(len(dataset), min(_NUM_SAMPLES, len(dataset)), replace=False)
    ignore, names = dataset.info.sem_seg_ignore, dataset.info.sem_seg_names
    seen: set[int] = set()
    maps, blank = 0, []
    depths: list[Tensor] = []
    for place in sorted(places.tolist()):
        sample = dataset[place]
        if "sem_seg" in sample:
            labels = set(sample["sem_seg"].unique().tolist())
            seen |= labels
            maps += 1
            if labels == {ignore}:
                blank.append(place)
        if "depth" in sample:
            depths.append(sample["depth"][has_depth(sample["depth"])])
    _look_at_depths(where, dataset.info, depths)
    classes = sorted(seen - {ignore})
    if blank:
        logger.warning(
            "%s: %d of %d label maps that were looked at are don't care (%d) everywhere, such as that of %s",
            *(where, len(blank), maps, ignore, dataset.image_path(blank[0])),
        )
    if len(classes) == 1:
        logger.warning(
            "%s: in the %d label maps that were looked at every pixel is of class %d (%s)%s, so nothing is told apart",
            *(where, maps, classes[0], names[classes[0]]),
            f" or don't care ({ignore}). If {ignore} stands for a class in these files, reader sem_seg_folder needs "
            f"values [0, {ignore}] and ignore_values []"
            if ignore in seen
            else "",
        )


def _look_at_depths(where: str, info: DatasetInfo, depths: list[Tensor]) -> None:
    """Warn of depths that can hardly be meant: none at all, one alone, or metres that are another unit."""
    if not depths:
        return
    found, empty = torch.cat(depths), sum(len(depth) == 0 for depth in depths)
    if empty:
        logger.warning(
            "%s: %d of %d depths that were looked at have no pixel with one", where, empty, len(depths)
        )
    if not len(found):
        return
    least, middle, most = (float(value) for value in (found.min(), found.median(), found.max()))
    if least == most:
        logger.warning("%s: all depths that were looked at are %g, so nothing is told apart", where, least)
    elif info.depth_units == ("metres",) and not _METRES[0] <= middle <= _METRES[1]:
        logger.warning(
            "%s: half of the depths that were looked at are above %g metres; is that meant, or is the scale "
            "(depth_scale of an index, scale of a folder) another one?",
            *(where, middle),
        )
