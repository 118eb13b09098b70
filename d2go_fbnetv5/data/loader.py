"""Loaders for training (endless, exactly resumable) and evaluation (every image once over all ranks)."""

import errno
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from d2go_fbnetv5.data.order import TrainOrder, upright_images
from d2go_fbnetv5.utils.errors import InputError, LostProcessError, RemoteTraceback, describe_signal
from d2go_fbnetv5.utils.opencv import opencv

Transform = Callable[[dict[str, Any], int], dict[str, Any]]


class Batches(Protocol):
    """Batches of indices of a data set, whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[int]]: ...


# Bytes; of a tensor in a block of many, as vector instructions want it.
_ALIGNMENT = 64


def build_train_loader(
    dataset: Any,
    transform: Transform | None,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_iteration: int = 0,
    num_workers: int = 0,
    group_by_orientation: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of ``batch_size`` transformed samples for this rank.

    Order and augmentation are a function of (seed, position) alone: they don't depend on ``num_workers``, and
    starting at iteration k gives what an uninterrupted run would. See ``TrainOrder`` for how ranks share the order.

    ``group_by_orientation``: a batch over all ranks has either wide (or square) or upright images, so that little of
    it is padding. The data set must have ``sizes``, N x 2 (height, width).

    Raises what the data set raises (ValueError, FileNotFoundError), from a worker too, with its own message.
    """
    groups = upright_images(dataset) if group_by_orientation else None
    order = TrainOrder(len(dataset), batch_size, seed, rank, world_size, start_iteration, groups)
    return iter(_make_loader(_Reader(dataset, transform, seed), order, num_workers))


def build_eval_loader(
    dataset: Any,
    transform: Transform | None,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> "_Loader":
    """Batches of this rank's samples ``rank, rank + world_size, ...``, the last batch may be smaller.

    Over all ranks every image comes exactly once. Can be iterated any number of times and has a length.
    """
    if batch_size < 1:
        raise InputError(f"evaluation loader: batch_size is {batch_size}, it must be at least 1")
    if not 0 <= rank < world_size:
        raise InputError(f"evaluation loader: rank is {rank}, it must be 0 to {world_size - 1}")
    batches = _IndexBatches(range(rank, len(dataset), world_size), batch_size)
    return _make_loader(_Reader(dataset, transform, seed=0), _Pairs(batches), num_workers)


def read_batches(dataset: Any, batches: Batches, num_workers: int = 0) -> "_Loader":
    """Read the samples of batches of indices, in the order given; read in workers if there are any."""
    return _make_loader(_Reader(dataset, None, seed=0), _Pairs(batches), num_workers)


# Both make a batch when it is asked for: a set may have millions of images.


class _IndexBatches:
    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices, self.batch_size = indices, batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield self.indices[first : first + self.batch_size]


class _Pairs:
    """(position, index) pairs of batches of indices, where nothing depends on the position."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(index, index) for index in batch]


class _Reader(torch.utils.data.Dataset["dict[str, Any] | _Failure"]):
    """Reads and transforms the sample of a (position, index) pair."""

    def __init__(self, dataset: Any, transform: Transform | None, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, item: tuple[int, int]) -> "dict[str, Any] | _Failure":
        position, index = item
        try:
            sample = self.dataset[index]
            if self.transform is not None:
                state = np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)
                sample = self.transform(sample, int(state[0] >> np.uint64(1)))
        except Exception as error:
            if get_worker_info() is None:
                raise
            # torch would wrap the message into the worker's traceback.
            return _Failure(_portable(error), traceback.format_exc())
        return sample


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot be sent to another process, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Failure:
    def __init__(self, error: Exception, where: str) -> None:
        self.error, self.where = error, where


class _Loader:
    """A DataLoader over lists of samples, whose workers' errors are raised as they were."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._workers: list[BaseProcess] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = self._start()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                self._blame_a_dead_worker(error)
                raise
            samples = _unpack(batch) if isinstance(batch, tuple) else batch
            for sample in samples:
                if isinstance(sample, _Failure):
                    raise sample.error from RemoteTraceback(sample.where)
            yield samples

    def _start(self) -> Iterator[Any]:
        before, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
        batches = iter(self._loader)
        if threading.current_thread() is threading.main_thread():
            # torch's would raise in the midst of whatever runs when a worker dies; who waits for it finds it as well.
            signal.signal(signal.SIGCHLD, handler)
        self._workers += [child for child in multiprocessing.active_children() if child not in before]
        return batches

    def _blame_a_dead_worker(self, error: Exception) -> None:
        if not self._workers:
            return
        ended = wait(
            [worker.sentinel for worker in self._workers], timeout=10
        )  # a busy machine takes its time
        for worker in self._workers:
            if worker.sentinel in ended:
                worker.join(
                    timeout=10
                )  # its files, and so its sentinel, are closed some time before it has a status
            if worker.exitcode is not None and worker.exitcode < 0:
                how = describe_signal(-worker.exitcode)
                raise LostProcessError(
                    f"a worker that reads images (DATALOADER.NUM_WORKERS) was {how}"
                ) from error


def _make_loader(reader: _Reader, batches: Any, num_workers: int) -> _Loader:
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers}, it must be at least 0")
    opencv()  # here, as an error in a worker that starts would be lost, and a fork has what its parent has loaded
    return _Loader(
        DataLoader(
            reader,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_pack if num_workers else list,
            worker_init_fn=_start_worker,
            persistent_workers=num_workers > 0,
            multiprocessing_context=_start_method() if num_workers else None,
            # DataLoader draws a seed for its workers; without this it would be from the global generator.
            generator=torch.Generator(),
        )
    )


def _start_method() -> str | None:
    """Return how workers start: on Linux as forks, whatever Python's own choice is, in a spawned process too.

    Anything else starts a Python for each, which reads all modules anew and has the data set sent. A fork has copies of
    the locks of its parent's threads, and no GPU. Workers need neither: they read, transform and send, without
    threads of their own (`_start_worker`; torch allows itself one there).
    """
    return "fork" if sys.platform == "linux" else None


def _start_worker(worker: int) -> None:
    # A worker is one process of many: threads of its own would fight for the same cores.
    opencv().setNumThreads(0)


def _pack(samples: list[Any]) -> tuple[bytes, list[tuple[int, int]], torch.Tensor]:
    """A batch as one tensor of bytes: one block of shared memory and one file handle, whatever the batch's size.

    Sent one by one, a few batches of a few hundred tensors exceed the usual limit on open files.

    Returns:
        The samples without the contents of their tensors, where those begin and end in the block, and the block.
    """
    plain = [_map_values(sample, torch.Tensor, torch.Tensor.numpy) for sample in samples]
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(plain, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    places, end = [], 0
    for view in views:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + view.nbytes
        places.append((start, end))
    block = torch.empty(end, dtype=torch.uint8)
    try:
        block.share_memory_()  # here, as an error in the thread that sends it would be lost
    except RuntimeError as error:
        raise OSError(
            errno.ENOSPC, f"shared memory (/dev/shm) has no room for a batch of {end} bytes"
        ) from error
    memory = block.numpy().data
    for (start, stop), view in zip(places, views, strict=True):
        memory[start:stop] = view
    return header, places, block


def _unpack(packed: tuple[bytes, list[tuple[int, int]], torch.Tensor]) -> list[Any]:
    """The samples, whose tensors are parts of the block."""
    header, places, block = packed
    memory = block.numpy().data
    samples = pickle.loads(header, buffers=[memory[start:stop] for start, stop in places])
    return [_map_values(sample, np.ndarray, torch.from_numpy) for sample in samples]


def _map_values(sample: Any, kind: type, convert: Callable[..., Any]) -> Any:
    if not isinstance(sample, dict):
        return sample
    return {key: convert(value) if isinstance(value, kind) else value for key, value in sample.items()}
