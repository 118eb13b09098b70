"""The files of a labelling, and how its parts become one set.

::

    OUTPUT_DIR/
      job.json                  what the labels depend on: settings, images; a continuation must agree with it
      chunks/00000/             the labels of the first CHUNK_SIZE images, and so on; whole or not there
        index/                  in the format of ``data.index_files``
        sem_seg/000000.png      label maps by the image's place: 8 bits, 255 = don't care
        depth/000000.npy        maps of depth: floats of 16 bits
        skipped.jsonl, statistics.json
        chunk.json              of which job it is, and the digest of its files: a chunk that was swapped, cut or
                                flipped is labelled anew
      index/                    merged: what MultitaskDataset opens; file names are relative to OUTPUT_DIR
      skipped.jsonl             merged; one line an image without labels, or without those of a task: {"image": file
                                name, "task": null (no image at all), "CLS", "DET", "SEG" or "DEPTH", "reason": ...}
      statistics.json           merged, see below

Images stay where they are. Of an image that cannot be read there is only the line in ``skipped.jsonl``.

``statistics.json`` is made of counts, so that the merged one is the sum of the chunks'::

    {"images": in the index, "skipped": that cannot be read, "missing": those of them that are not there or cannot be
     opened, "unlabelled": in the index, without a label of any task,
     "CLS": {"images": with a label, "problems": in skipped.jsonl, "scores": [SCORE_BINS of each image's best class]},
     "DET": {"images", "problems", "given", "dropped_class", "below_threshold", "without_area", "kept": boxes,
             "boxes": [kept, of each class], "scores": [[SCORE_BINS of all boxes] of each class]},
     "SEG": {"images", "problems", "ignored": pixels that are don't care, "pixels": [of each class],
             "scores": [SCORE_BINS of all pixels]},
     "DEPTH": {"images", "problems"}}

A task that nobody labels is missing, and "scores" where the labels are the data set's own. Scores are counted before
the threshold, in SCORE_BINS equal parts of 0 to 1 (``filter``).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from d2go_fbnetv5.data.images import encode_png
from d2go_fbnetv5.data.index_arrays import NO_LABEL, BoxArrays, MultitaskIndex, Strings, own_areas
from d2go_fbnetv5.data.index_files import map_index, save_index, write_index
from d2go_fbnetv5.pseudo_labels.filter import IGNORE, Boxes
from d2go_fbnetv5.pseudo_labels.labeller import Labels
from d2go_fbnetv5.pseudo_labels.settings import FIELDS
from d2go_fbnetv5.tasks.base import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import remove_rests, write_atomically

logger = logging.getLogger(__name__)

# In the temporary folder of a chunk: the images that are being labelled, so that it is known which ended a process.
_NOTE = "labelling"


class Output:
    """The files of a labelling."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.job, self.index = self.folder / "job.json", self.folder / "index"
        self.skipped, self.statistics = self.folder / "skipped.jsonl", self.folder / "statistics.json"

    def chunk(self, number: int) -> Path:
        return self.folder / "chunks" / f"{number:05d}"

    def seal(self, number: int, folder: Path) -> str:
        """Return the text of a chunk's ``chunk.json``: whose chunk its files are, and what is in them."""
        job = json.dumps(json.loads(self.job.read_text(encoding="utf-8")), sort_keys=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "chunk.json")
        content = hashlib.sha256()
        for file in files:
            content.update(f"{file.relative_to(folder)} {_sha256(file)}\n".encode())
        seal = {
            "job": hashlib.sha256(job.encode()).hexdigest(),
            "number": number,
            "sha256": content.hexdigest(),
        }
        return json.dumps(seal, indent=1) + "\n"

    def missing(self, chunks: Collection[int]) -> list[int]:
        """Return which of ``chunks`` are not there, or are not what this labelling wrote."""
        return [number for number in chunks if not self._is_whole(number)]

    def _is_whole(self, number: int) -> bool:
        folder = self.chunk(number)
        if not folder.exists():
            return False
        try:
            whole = (folder / "chunk.json").read_bytes() == self.seal(number, folder).encode()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            whole = False
        if not whole:
            logger.warning("%s is not as this labelling wrote it", folder)
        return whole

    def unread(self, number: int) -> set[str]:
        """Return the file names of a whole chunk's images that could not be read."""
        lines = (self.chunk(number) / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
        return {line["image"] for line in map(json.loads, lines) if line["task"] is None}

    def cut_off(self, number: int) -> list[str]:
        """Return the images that killed processes were labelling in a chunk, first and last of each batch."""
        notes = self.folder.glob(f"chunks/{number:05d}.*.tmp/{_NOTE}")
        return [os.fsdecode(note.read_bytes()) for note in notes]

    @contextmanager
    def claimed(self, chunks: Collection[int]) -> Iterator[None]:
        """Keeps other processes from labelling ``chunks`` or merging them, until the block or this process ends.

        Raises:
            ValueError: another process has one of them.
            OSError: the folder cannot be written.
        """
        with open(self.folder / "labelling.lock", "ab") as file:
            for number in chunks:
                try:
                    fcntl.lockf(
                        file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number
                    )  # a byte that need not be there
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise InputError(
                            f"another process is labelling {self.chunk(number)}; allowed is one command at a time for "
                            "each --shard-index"
                        ) from None
                    logger.warning("%s: this disk has no locks (%s)", self.folder, error)
                    break
            yield


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class RelativeNames:
    """Paths of images as file names relative to a folder, which is right as long as both stay where they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parents: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.relpath(os.path.realpath(parent), self._folder)
        return os.path.join(self._parents[parent], name)


class ChunkWriter:
    """Collects the labels of a chunk and writes them into an empty folder.

    Args:
        folder: what ``replacing_folder`` gives for ``final``.
        final: where the folder will be, relative to OUTPUT_DIR.
        info: what is labelled.
        with_scores: whether boxes come from a teacher.
    """

    def __init__(self, folder: Path, final: str, info: DatasetInfo, with_scores: bool) -> None:
        self._folder, self._final, self._info, self._with_scores = folder, final, info, with_scores
        self._images: list[tuple[int, tuple[int, int], str, int, str, str, bool]] = []
        self._boxes: list[BoxArrays] = []
        self._skipped: list[dict[str, Any]] = []
        self._statistics: dict[str, Any] = {"images": 0, "skipped": 0, "missing": 0, "unlabelled": 0}
        for name, labelled in (("sem_seg", info.sem_seg_names), ("depth", info.depth_units)):
            if labelled:
                (folder / name).mkdir()

    def begin(self, names: Sequence[str]) -> None:
        """A batch of images that are about to be labelled."""
        (self._folder / _NOTE).write_bytes(os.fsencode(" to ".join(dict.fromkeys([names[0], names[-1]]))))

    def skip(self, name: str, reason: str, is_missing: bool) -> int:
        """Count an image that is broken, or is missing; return how many are missing so far."""
        self._skipped.append({"image": name, "task": None, "reason": reason})
        self._statistics["skipped"] += 1
        self._statistics["missing"] += is_missing
        return self._statistics["missing"]

    def add(self, place: int, name: str, image_id: int, size: tuple[int, int], labels: Labels) -> None:
        map_name = ""
        if labels.sem_seg is not None:
            map_name = f"sem_seg/{place:06d}.png"
            (self._folder / map_name).write_bytes(encode_png(labels.sem_seg))
            map_name = f"{self._final}/{map_name}"
        depth_name = ""
        if labels.depth is not None:
            depth_name = f"depth/{place:06d}.npy"
            np.save(self._folder / depth_name, labels.depth.astype(np.float16), allow_pickle=False)
            depth_name = f"{self._final}/{depth_name}"
        label = NO_LABEL if labels.class_label is None else labels.class_label
        self._images.append((image_id, size, name, label, map_name, depth_name, labels.boxes is not None))
        if self._info.box_names:
            found = labels.boxes
            self._boxes.append(self._no_boxes(images=1) if found is None else _box_arrays(found))
        for task, reason in labels.problems.items():
            self._skipped.append({"image": name, "task": task, "reason": reason})
        self._count(labels)

    def _count(self, labels: Labels) -> None:
        given = {
            "CLS": labels.class_label,
            "DET": labels.boxes,
            "SEG": labels.sem_seg,
            "DEPTH": labels.depth,
        }
        added: dict[str, Any] = {
            "images": 1,
            "unlabelled": int(all(value is None for value in given.values())),
        }
        for task, value in given.items():
            if not getattr(self._info, FIELDS[task]):
                continue
            counts: dict[str, Any] = {
                "images": int(value is not None),
                "problems": int(task in labels.problems),
            }
            if task in labels.histograms:
                counts["scores"] = labels.histograms[task]
            added[task] = counts
        if labels.boxes is not None:
            kept = np.bincount(labels.boxes.labels, minlength=len(self._info.box_names))
            added["DET"] |= {**labels.boxes.counts, "boxes": kept}
        if labels.sem_seg is not None:
            pixels = np.bincount(labels.sem_seg.ravel(), minlength=IGNORE + 1)
            added["SEG"] |= {
                "ignored": int(pixels[IGNORE]),
                "pixels": pixels[: len(self._info.sem_seg_names)],
            }
        self._statistics = _sum(self._statistics, added)

    def _no_boxes(self, images: int) -> BoxArrays:
        scores = np.zeros(0, np.float32) if self._with_scores else None
        starts, boxes = np.zeros(images + 1, np.int64), np.zeros((0, 4), np.float32)
        return BoxArrays(starts, boxes, np.zeros(0, np.int32), scores=scores)

    @property
    def num_images(self) -> int:
        """Return how many images were added so far."""
        return self._statistics["images"]

    def problems(self) -> dict[str, str]:
        """Return the tasks whose source was wrong about every image so far, with the last reason."""
        reasons = {line["task"]: line["reason"] for line in self._skipped}
        tasks = [task for task in FIELDS if task in self._statistics]
        return {
            task: reasons[task] for task in tasks if self._statistics[task]["problems"] == self.num_images
        }

    def write(self) -> None:
        (self._folder / _NOTE).unlink(missing_ok=True)
        info = self._info
        ids, sizes, names, labels, maps, depths, has_boxes = (
            zip(*self._images, strict=True) if self._images else [()] * 7
        )
        index = MultitaskIndex(
            info,
            np.array(ids, dtype=np.int64),
            np.array(sizes, dtype=np.int32).reshape(-1, 2),
            Strings.of(names),
            class_labels=np.array(labels, dtype=np.int32),
            map_names=Strings.of(maps),
            depth_names=Strings.of(depths) if info.depth_units else None,
        )
        if info.box_names:
            index.boxes = _join_boxes(self._boxes or [self._no_boxes(images=0)])
            index.has_boxes = np.array(has_boxes, dtype=bool)
        (self._folder / "index").mkdir()
        write_index(index, self._folder / "index")
        lines = "".join(f"{json.dumps(line)}\n" for line in self._skipped)
        (self._folder / "skipped.jsonl").write_text(lines, encoding="utf-8")
        (self._folder / "statistics.json").write_text(_json(self._statistics), encoding="utf-8")


def merge(output: Output, count: int) -> MultitaskIndex:
    """Joins ``count`` chunks to one index, list of skipped images and statistics.

    Raises:
        ValueError: chunks are missing.
    """
    missing = output.missing(range(count))
    if missing:
        raise InputError(
            f"{output.folder}: {len(missing)} of {count} chunks are not labelled yet, the first is {missing[0]}; "
            "run the same command without --merge, for every --shard-index"
        )
    for path in (output.job, output.skipped, output.statistics, output.index):
        remove_rests(path)
    chunks = [output.chunk(number) for number in range(count)]
    index = _join([map_index(chunk / "index") for chunk in chunks])
    index.check(output.index)
    index.check_boxes(output.index)
    statistics: dict[str, Any] = {}
    for chunk in chunks:
        statistics = _sum(statistics, json.loads((chunk / "statistics.json").read_text(encoding="utf-8")))
    write_atomically(output.skipped, b"".join((chunk / "skipped.jsonl").read_bytes() for chunk in chunks))
    write_atomically(output.statistics, _json(statistics))
    save_index(index, output.index)
    return index


def _join(parts: Sequence[MultitaskIndex]) -> MultitaskIndex:
    info = parts[0].info
    if any(part.info != info for part in parts):
        raise InputError("the chunks do not have the same classes; label them into a new OUTPUT_DIR")
    index = MultitaskIndex(
        info,
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        Strings.joined([part.file_names for part in parts]),
    )
    if info.class_names:
        index.class_labels = np.concatenate([part.class_labels for part in parts])
    if info.sem_seg_names:
        index.map_names = Strings.joined([part.map_names for part in parts if part.map_names is not None])
    if info.depth_units:
        index.depth_names = Strings.joined([p.depth_names for p in parts if p.depth_names is not None])
    if info.box_names:
        index.has_boxes = np.concatenate([part.has_boxes for part in parts])
        index.boxes = _join_boxes([part.boxes for part in parts if part.boxes is not None])
    return index


# What holds of the boxes of a part that says nothing about it, where another part does.
_UNSAID: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "crowd": lambda boxes: np.zeros(len(boxes), bool),
    "scores": lambda boxes: np.zeros(len(boxes), np.float32),
    "areas": own_areas,
}


def _box_arrays(found: Boxes) -> BoxArrays:
    starts = np.array([0, len(found.boxes)])
    return BoxArrays(starts, found.boxes, found.labels, found.crowd, found.scores, found.areas)


def _join_boxes(parts: Sequence[BoxArrays]) -> BoxArrays:
    counts = np.concatenate([np.diff(part.starts) for part in parts]).astype(np.int64)
    joined: dict[str, np.ndarray | None] = {}
    for name, default in _UNSAID.items():
        columns = [getattr(part, name) for part in parts]
        if all(column is None for column in columns):
            continue
        joined[name] = np.concatenate(
            [
                default(part.boxes) if column is None else column
                for part, column in zip(parts, columns, strict=True)
            ]
        )
    return BoxArrays(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        **joined,
    )


def _sum(first: Any, second: Any) -> Any:
    """Add up numbers and arrays, lists and dicts of them; what one of them lacks is nothing."""
    if isinstance(first, dict):
        return {
            key: _sum(first[key], second[key])
            if key in first and key in second
            else first.get(key, second.get(key))
            for key in dict.fromkeys([*first, *second])
        }
    if isinstance(first, list):
        return [_sum(*pair) for pair in zip(first, second, strict=True)]
    return first + second


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=np.ndarray.tolist) + "\n"
