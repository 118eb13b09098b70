"""The labelling of a set: which images are in which chunk, that a continuation agrees with its beginning, the loop."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from d2go_fbnetv5.data import read_batches
from d2go_fbnetv5.engine.distributed import rank, world_size
from d2go_fbnetv5.engine.formatting import format_duration
from d2go_fbnetv5.engine.train import pick_device
from d2go_fbnetv5.pseudo_labels.labeller import Labeller
from d2go_fbnetv5.pseudo_labels.output import ChunkWriter, Output, RelativeNames
from d2go_fbnetv5.pseudo_labels.settings import label_settings, open_images
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import remove_rests, replacing_folder, write_atomically

logger = logging.getLogger(__name__)

# A chunk of which a teacher fails on every image, and on no fewer than these, is not kept: the fault is the teacher's.
_HOPELESS = 8


class Images(torch.utils.data.Dataset):
    """The images to label, by their place: those of the data set, or LIMIT of them.

    ``images[place]`` is a sample, or {"unreadable": reason}.
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
        except (ValueError, OSError) as error:
            return {"unreadable": str(error)}

    @property
    def num_chunks(self) -> int:
        return -(-len(self) // self.chunk_size)

    def places(self, chunk: int) -> range:
        """Of the images of a chunk."""
        return range(chunk * self.chunk_size, min(len(self), (chunk + 1) * self.chunk_size))


def prepare(settings: CfgNode) -> int:
    """Begins a labelling in OUTPUT_DIR, or checks that it is the one that was begun there.

    Returns:
        The number of chunks.

    Raises:
        ValueError: settings or images are not those of the labelling begun, or OUTPUT_DIR is among the images.
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
    if output.job.is_file():
        begun = json.loads(output.job.read_text(encoding="utf-8"))
        _compare(f"{output.folder} holds labels that were made with", begun["settings"], job["settings"])
        _compare(f"{output.folder} holds labels of other images, with", begun["images"], job["images"])
    else:
        output.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(output.job, json.dumps(job, indent=1) + "\n")
    return images.num_chunks


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
    mine = list(chunks)[rank() :: world_size()]
    if not mine:
        return
    images, output = Images(settings), Output(settings.OUTPUT_DIR)
    labeller = Labeller(settings, images.dataset.info, pick_device(settings.DEVICE))
    names = RelativeNames(output.folder)
    batches = _Batches(images, mine, settings.BATCH_SIZE)
    samples = iter(read_batches(images, batches, settings.NUM_WORKERS))
    start, done = time.monotonic(), 0
    for position, chunk in enumerate(mine):
        remove_rests(output.chunk(chunk))
        failures, successes = labeller.failures, labeller.successes
        with replacing_folder(output.chunk(chunk)) as folder:
            final = str(output.chunk(chunk).relative_to(output.folder))
            writer = ChunkWriter(folder, final, labeller.info, labeller.has_teacher("DET"))
            for places in batches.of(chunk):
                _label_batch(images, names, labeller, writer, places, next(samples))
            if labeller.failures - failures >= _HOPELESS and labeller.successes == successes:
                raise InputError(
                    f"a teacher failed on all of the {len(images.places(chunk))} images of chunk {chunk}: "
                    f"{writer.last_problem}"
                )
            writer.write()
        done += len(images.places(chunk))
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
) -> None:
    labels = iter(labeller([sample for sample in samples if "unreadable" not in sample]))
    for place, sample in zip(places, samples, strict=True):
        name = names(images.path(place))
        if "unreadable" in sample:
            writer.skip(name, sample["unreadable"])
        else:
            size = tuple(sample["image"].shape[-2:])
            writer.add(place, name, sample["image_id"], size, next(labels))


def _report(chunk: int, done: int, seconds: float, left: int) -> None:
    rate = done / max(seconds, 1e-9)
    logger.info(
        "chunk %d is labelled: %.1f images/s, %s left here", chunk, rate, format_duration(left / rate)
    )
