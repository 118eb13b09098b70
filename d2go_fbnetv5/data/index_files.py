"""The multitask format for many images: a folder of arrays that are mapped into memory, not read.

``index.json`` in the folder has the names of what is labelled and the numbers of images and boxes. Beside it lie the
arrays of ``MultitaskIndex`` and ``BoxArrays`` as numpy's ``.npy`` files, N images and M boxes:

==================  ===========  ==============================================================================
file                             there
==================  ===========  ==============================================================================
ids                 N int64      always
sizes               N x 2 int32  always; height and width
file_names          uint8        always; the names' UTF-8 bytes, and where each name ends in them:
file_name_ends      N uint32     always
class_labels        N int32      with class_names; -2147483648 is "not labelled"
map_names           uint8        with sem_seg_names; an empty name is "not labelled"
map_name_ends       N uint32     with sem_seg_names
depth_names         uint8        with depth_units; an empty name is "not labelled"
depth_name_ends     N uint32     with depth_units
has_boxes           N bool       with box_names
box_starts          N+1 uint32   with box_names; image i has the boxes starts[i] to starts[i + 1]
boxes               M x 4 float32  with box_names; XYXY pixels
box_labels          M uint16     with box_names
box_is_crowd        M bool       optional
box_scores          M float32    optional
box_areas           M float64    optional; of the objects themselves, in pixels
==================  ===========  ==============================================================================

What is uint32 is int64 where it does not fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from d2go_fbnetv5.data.coco_index import depth_scale_of, load_json, names_of
from d2go_fbnetv5.data.index_arrays import NO_LABEL, BoxArrays, MultitaskIndex, Strings
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import replacing_folder

HEADER = "index.json"
_VERSION = 1
_TYPES = {
    "ids": np.int64,
    "sizes": np.int32,
    "file_names": np.uint8,
    "file_name_ends": np.uint32,
    "class_labels": np.int32,
    "map_names": np.uint8,
    "map_name_ends": np.uint32,
    "depth_names": np.uint8,
    "depth_name_ends": np.uint32,
    "has_boxes": np.bool_,
    "box_starts": np.uint32,
    "boxes": np.float32,
    "box_labels": np.uint16,
    "box_is_crowd": np.bool_,
    "box_scores": np.float32,
    "box_areas": np.float64,
}


def save_index(index: MultitaskIndex, folder: str | Path) -> None:
    """Writes an index as a folder, whole or not at all; one that is there is replaced."""
    with replacing_folder(folder) as partial:
        write_index(index, partial)


def write_index(index: MultitaskIndex, folder: Path) -> None:
    """Writes the files of an index into an empty folder. The same index gives the same bytes."""
    count, info, boxes = len(index), index.info, index.boxes
    if len(info.box_names) > np.iinfo(_TYPES["box_labels"]).max:
        raise InputError(
            f"an index of arrays may have {np.iinfo(_TYPES['box_labels']).max} classes of boxes at most"
        )
    arrays = {
        "ids": index.ids,
        "sizes": index.sizes,
        "file_names": index.file_names.data,
        "file_name_ends": index.file_names.ends,
    }
    if info.class_names:
        empty = np.full(count, NO_LABEL, dtype=np.int32)
        arrays["class_labels"] = empty if index.class_labels is None else index.class_labels
    if info.sem_seg_names:
        names = index.map_names or Strings.of([""] * count)
        arrays |= {"map_names": names.data, "map_name_ends": names.ends}
    if info.depth_units:
        names = index.depth_names or Strings.of([""] * count)
        arrays |= {"depth_names": names.data, "depth_name_ends": names.ends}
    if info.box_names:
        boxes = boxes or BoxArrays(np.zeros(count + 1), np.zeros((0, 4)), np.zeros(0))
        labelled = index.has_boxes
        arrays |= {
            "has_boxes": np.full(count, index.boxes is not None) if labelled is None else labelled,
            "box_starts": boxes.starts,
            "boxes": boxes.boxes,
            "box_labels": boxes.labels,
        }
        optional = {"box_is_crowd": boxes.crowd, "box_scores": boxes.scores, "box_areas": boxes.areas}
        arrays |= {name: array for name, array in optional.items() if array is not None}
    for name, array in arrays.items():
        kind = _TYPES[name]
        if kind is np.uint32 and array[-1:].sum() > np.iinfo(kind).max:
            kind = np.int64
        with open(folder / f"{name}.npy", "wb") as file:
            # As of any stream: into a file numpy writes by itself, and does not say of a full disk that it is full.
            stream = SimpleNamespace(write=file.write)
            np.save(stream, np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
    header: dict[str, Any] = {
        "version": _VERSION,
        "num_images": count,
        "num_boxes": len(boxes.boxes) if boxes else 0,
    }
    header |= {key: list(getattr(info, key)) for key in DatasetInfo.KINDS}
    if info.depth_units:
        header["depth_scale"] = index.depth_scale
    (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def open_index(folder: str | Path) -> MultitaskIndex:
    """Open a checked index whose arrays are mapped into memory; see ``map_index`` for one that is known to be right.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: a file is broken, or the index breaks a rule; names the file or image, and what is allowed.
    """
    folder = Path(folder)
    index = map_index(folder)
    ids = index.ids
    if not (ids[1:] > ids[:-1]).all():
        ids = np.sort(ids)
    if (ids[1:] == ids[:-1]).any():
        raise InputError(f"{folder}: the same id occurs more than once in ids.npy")
    index.check(folder)
    index.check_boxes(folder)
    # Mapped anew, so that what the checks have read of the files does not count as this process' memory.
    return map_index(folder)


def _count(path: Path, header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or value < 0:
        raise InputError(f"{path}: {key} is {value!r}, it must be an integer of at least 0")
    return value


def map_index(folder: Path) -> MultitaskIndex:
    """Return an index as its files have it: of arrays that fit together, with values that are not checked."""
    header = load_json(folder / HEADER)
    if header.get("version") != _VERSION:
        raise InputError(
            f"{folder / HEADER}: version is {header.get('version')!r}, this release reads {_VERSION}"
        )
    names: dict[str, Any] = {key: names_of(folder / HEADER, header, key) for key in DatasetInfo.KINDS}
    info = DatasetInfo(**names)
    count, num_boxes = (_count(folder / HEADER, header, key) for key in ("num_images", "num_boxes"))

    def array(name: str, *shape: int) -> np.ndarray:
        return _map(folder / f"{name}.npy", _TYPES[name], shape)

    def optional(name: str, *shape: int) -> np.ndarray | None:
        return array(name, *shape) if (folder / f"{name}.npy").is_file() else None

    def strings(data: str, ends: str) -> Strings:
        places = array(ends, count)
        if (places[1:] < places[:-1]).any():
            raise InputError(f"{folder / ends}.npy: its values must not decrease")
        return Strings(array(data, int(places[-1]) if count else 0), places)

    index = MultitaskIndex(
        info=info,
        ids=array("ids", count),
        sizes=array("sizes", count, 2),
        file_names=strings("file_names", "file_name_ends"),
    )
    if info.class_names:
        index.class_labels = array("class_labels", count)
    if info.sem_seg_names:
        index.map_names = strings("map_names", "map_name_ends")
    if info.depth_units:
        index.depth_names = strings("depth_names", "depth_name_ends")
        index.depth_scale = depth_scale_of(folder / HEADER, header)
    if info.box_names:
        index.has_boxes = array("has_boxes", count)
        starts = array("box_starts", count + 1)
        if starts[0] != 0 or starts[-1] != num_boxes or (starts[1:] < starts[:-1]).any():
            raise InputError(
                f"{folder / 'box_starts.npy'}: must go from 0 to the number of boxes, {num_boxes}, and not decrease"
            )
        index.boxes = BoxArrays(
            starts,
            array("boxes", num_boxes, 4),
            array("box_labels", num_boxes),
            optional("box_is_crowd", num_boxes),
            optional("box_scores", num_boxes),
            optional("box_areas", num_boxes),
        )
    return index


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        # Nothing can be mapped of an empty array.
        found = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is broken or cut short ({error})") from None
    if found.dtype != dtype and (found.dtype, dtype) != (np.int64, np.uint32) or found.shape != shape:
        raise InputError(
            f"{path} is an array of {found.dtype} and shape {found.shape}, "
            f"expected {np.dtype(dtype)} and {tuple(shape)}"
        )
    return np.asarray(found)
