"""The labelling of a set: which images are in which chunk, that a continuation agrees with its beginning, the loop."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from d2go_fbnetv5.data import read_batches
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.engine.log import said_before
from d2go_fbnetv5.engine.train import pick_device
from d2go_fbnetv5.pseudo_labels.labeller import Labeller
from d2go_fbnetv5.pseudo_labels.output import ChunkWriter, Output, RelativeNames
from d2go_fbnetv5.pseudo_labels.settings import label_settings, open_images
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import remove_rests, replacing_folder, write_atomically
from d2go_fbnetv5.utils.formatting import format_duration
from d2go_fbnetv5.utils.ranks import rank, world_size
from d2go_fbnetv5.utils.text_files import read_json_object

logger = logging.getLogger(__name__)

# A chunk is not kept where a teacher fails on every image, and on no fewer than these in a row: the fault is its own.
_HOPELESS = 8


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """The images to label, by their place: those of the data set, or LIMIT of them.

    ``images[place]`` is a sample, or {"unreadable": reason, "missing": whether the file is not there or cannot be
    opened, as where a disk is not mounted; otherwise it is broken}.
    """

    def __init__(self, settings: CfgNode) -> None:
        self.dataset = open_images(settings)
        self._chosen = np.arange(len(self.dataset))
        if 0 < settings.LIMIT < len(self.dataset):
            self._chosen = np.linspace(0, len(self.dataset) - 1, settings.LIMIT).round().astype(int)
        self.chunk_size: int = settings.CHUNK_SIZE

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, place: int) -> Path:
        return self.dataset.image_path(int(self._chosen[place]))

    def __getitem__(self, place: int) -> dict[str, Any]:
        try:
            return self.dataset[int(self._chosen[place])]
        except OSError as error:
            # Pillow's word on a broken file is an OSError, too, which the system has not numbered.
            missing = error.errno is not None or isinstance(error, FileNotFoundError)
            return {"unreadable": str(error), "missing": missing}
        except ValueError as error:
            return {"unreadable": str(error), "missing": False}

    @property
    def num_chunks(self) -> int:
        return -(-len(self) // self.chunk_size)

    def places(self, chunk: int) -> range:
        """Return the places of a chunk's images."""
        return range(chunk * self.chunk_size, min(len(self), (chunk + 1) * self.chunk_size))

    def most_missing(self, chunk: int) -> int:
        """Return how many images of a chunk may be missing: few, as from now and then a file is deleted."""
        count = len(self.places(chunk))
        return min(count // 2, max(_HOPELESS - 1, count // 10))


def prepare(settings: CfgNode) -> Images:
    """Begins a labelling in OUTPUT_DIR, or checks that it is the one that was begun there.

    Raises:
        ValueError: settings or images are not those of the labelling begun, or OUTPUT_DIR is among the images.
        OSError: OUTPUT_DIR cannot be written.
    """
    images, output = Images(settings), Output(settings.OUTPUT_DIR)
    for folder in getattr(images.dataset, "folders", ()):
        if output.folder.is_relative_to(folder.resolve()):
            raise InputError(
                f"OUTPUT_DIR is {settings.OUTPUT_DIR}, in the folder of images {folder}: its label maps would be "
                "images, too; allowed: any other folder"
            )
    names, digest = RelativeNames(output.folder), hashlib.sha256()
    for place in range(len(images)):
        digest.update(f"{names(images.path(place))}\n".encode("utf-8", "surrogateescape"))
    job = {
        "settings": label_settings(settings),
        "images": {"number": len(images), "names_sha256": digest.hexdigest()},
    }
    text = json.dumps(job, indent=1) + "\n"
    if output.job.exists():
        begun, job = _read_job(output.job), json.loads(text)
        _compare(f"{output.folder} holds labels that were made with", begun["settings"], job["settings"])
        _compare(f"{output.folder} holds labels of other images, with", begun["images"], job["images"])
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
        if not output.job.exists():
            write_atomically(output.job, text)
    except OSError as error:
        raise OSError(f"OUTPUT_DIR is {settings.OUTPUT_DIR}, which cannot be written: {error}") from error
    return images


def _read_job(path: Path) -> dict[str, Any]:
    job = read_json_object(path)
    if not all(isinstance(job.get(key), dict) for key in ("settings", "images")):
        raise InputError(
            f"{path} lacks the settings or images that a labelling begins with; allowed: the file as it was, or "
            "another OUTPUT_DIR"
        )
    return job


def unlabelled(images: Images, output: Output, chunks: Sequence[int]) -> list[int]:
    """Return the ``chunks`` to be labelled: what is not there yet, and what has images that could not be read and
    now can be."""
    found, names = set(output.missing(chunks)), RelativeNames(output.folder)
    for chunk in [chunk for chunk in chunks if chunk not in found]:
        unread = output.unread(chunk)
        for place in images.places(chunk) if unread else ():
            if names(images.path(place)) in unread and "unreadable" not in images[place]:
                logger.info("%s can be read now: its chunk %d is labelled anew", images.path(place), chunk)
                found.add(chunk)
                break
    return sorted(found)


def _compare(what: str, begun: Any, found: Any, key: str = "") -> None:
    if isinstance(begun, dict) and isinstance(found, dict):
        for name in dict.fromkeys([*begun, *found]):
            _compare(what, begun.get(name), found.get(name), f"{key}.{name}" if key else str(name))
    elif json.dumps(begun) != json.dumps(found):  # a tuple is a list in JSON
        raise InputError(f"{what} {key} {begun!r}, found {found!r}; allowed: the same, or another OUTPUT_DIR")


def label_chunks(settings: CfgNode, chunks: Sequence[int]) -> None:
    """Labels this process' part of ``chunks``: every world_size-th, from the rank-th on.

    Raises:
        ValueError: the settings, the teachers or the data set do not fit together, or a teacher fails on everything.
    """
    import_modules(settings)  # a process that was spawned has not loaded the settings itself
    mine = list(chunks)[rank() :: world_size()]
    if not mine:
        return
    with said_before():  # by `prepare`
        images = Images(settings)
    output = Output(settings.OUTPUT_DIR)
    labeller = Labeller(settings, images.dataset.info, pick_device(settings.DEVICE))
    names = RelativeNames(output.folder)
    batches = _Batches(images, mine, settings.BATCH_SIZE)
    samples = iter(read_batches(images, batches, settings.NUM_WORKERS))
    start, done = time.monotonic(), 0
    failed: Counter[str] = Counter()  # images in a row, by task
    for position, chunk in enumerate(mine):
        count = len(images.places(chunk))
        for name in output.cut_off(chunk):
            logger.warning("an earlier process was ended while it labelled %s", name)
        target = output.chunk(chunk)
        remove_rests(target)
        if not target.is_dir():
            target.unlink(missing_ok=True)  # a file that somebody has put there
        with replacing_folder(target) as folder:
            final = str(target.relative_to(output.folder))
            writer = ChunkWriter(folder, final, labeller.info, labeller.has_teacher("DET"))
            most_missing = count if settings.SKIP_MISSING else images.most_missing(chunk)
            for places in batches.of(chunk):
                missing = _label_batch(images, names, labeller, writer, places, next(samples))
                if missing > most_missing:
                    raise InputError(
                        f"{missing} images of chunk {chunk} are missing or cannot be opened, among them "
                        f"{images.path(places[-1])}; as soon as they are there the same command goes on; SKIP_MISSING "
                        "True leaves out what is missing"
                    )
            problems = writer.problems()
            failed = Counter({task: failed[task] + writer.num_images for task in problems})
            for task, reason in problems.items():
                if failed[task] >= _HOPELESS:
                    raise InputError(
                        f"{task}: a teacher failed on all of the {writer.num_images} images of chunk {chunk}: {reason}"
                    )
            writer.write()
            (folder / "chunk.json").write_text(output.seal(chunk, folder), encoding="utf-8")
        done += count
        _report(
            chunk, done, time.monotonic() - start, sum(len(images.places(c)) for c in mine[position + 1 :])
        )


class _Batches:
    """Places of images by batches, none of which has images of two chunks."""

    def __init__(self, images: Images, chunks: Sequence[int], batch_size: int) -> None:
        self._images, self._chunks, self._batch_size = images, chunks, batch_size

    def of(self, chunk: int) -> Iterator[range]:
        places = self._images.places(chunk)
        for first in range(0, len(places), self._batch_size):
            yield places[first : first + self._batch_size]

    def __len__(self) -> int:
        return sum(-(-len(self._images.places(chunk)) // self._batch_size) for chunk in self._chunks)

    def __iter__(self) -> Iterator[range]:
        for chunk in self._chunks:
            yield from self.of(chunk)


def _label_batch(
    images: Images,
    names: RelativeNames,
    labeller: Labeller,
    writer: ChunkWriter,
    places: range,
    samples: list[dict[str, Any]],
) -> int:
    """Labels and writes a batch; gives how many images of the chunk are missing so far."""
    found, missing = [names(images.path(place)) for place in places], 0
    writer.begin(found)
    labels = iter(labeller([sample for sample in samples if "unreadable" not in sample]))
    for place, name, sample in zip(places, found, samples, strict=True):
        if "unreadable" in sample:
            missing = writer.skip(name, sample["unreadable"], sample["missing"])
        else:
            size = tuple(sample["image"].shape[-2:])
            writer.add(place, name, sample["image_id"], size, next(labels))
    return missing


def _report(chunk: int, done: int, seconds: float, left: int) -> None:
    rate = done / max(seconds, 1e-9)
    logger.info(
        "chunk %d is labelled: %.1f images/s, %s left here", chunk, rate, format_duration(left / rate)
    )
