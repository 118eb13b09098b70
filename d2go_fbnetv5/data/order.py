"""The order of training samples: a pure function of (seed, iteration), so that a run resumes at the exact sample."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from d2go_fbnetv5.utils.errors import InputError


class _Stream:
    """Endless passes over some indices, each pass in a new order. Position p is in pass p // len."""

    def __init__(self, indices: np.ndarray, seed: int, group: int) -> None:
        self.indices, self.seed, self.group = indices, seed, group
        self._pass, self._order = -1, indices

    def __getitem__(self, position: int) -> int:
        number, offset = divmod(position, len(self.indices))
        if number != self._pass:
            rng = np.random.default_rng((self.seed, self.group, number))
            self._pass, self._order = number, rng.permutation(self.indices)
        return int(self._order[offset])


class TrainOrder:
    """The order of samples in an endless training run, batch by batch.

    Every pass over the set has an order of its own. All ranks read one global order: iteration k takes its next
    ``world_size * batch_size`` samples, and rank r the r-th part of those, so that the global batches depend only
    on their size and not on how many ranks share them.

    Args:
        length: number of samples in the set, at least 1.
        batch_size: samples per iteration of this rank.
        seed: non-negative.
        rank, world_size: this process and how many there are.
        start_iteration: the iteration that the iterator begins with.
        groups: for each sample True or False; a batch then has samples of one kind only (such as upright images).
            Both kinds appear in proportion to their numbers, evenly spread.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_iteration: int = 0,
        groups: Sequence[bool] | np.ndarray | None = None,
    ) -> None:
        for name, value, least in (
            ("the data set's length", length, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("start_iteration", start_iteration, 0),
        ):
            if value < least:
                raise InputError(f"training order: {name} is {value}, it must be at least {least}")
        if not 0 <= rank < world_size:
            raise InputError(f"training order: rank is {rank}, it must be 0 to {world_size - 1}")
        self.length, self.batch_size, self.start_iteration = length, batch_size, start_iteration
        self.rank, self.world_size = rank, world_size
        flags = np.zeros(length, dtype=bool) if groups is None else np.asarray(groups, dtype=bool)
        if flags.shape != (length,):
            raise InputError(f"training order: groups has shape {flags.shape}, expected ({length},)")
        kind = (
            np.int32 if length <= np.iinfo(np.int32).max else np.int64
        )  # half the memory, for millions of samples
        self._streams = tuple(
            _Stream(np.flatnonzero(flags == bool(group)).astype(kind), seed, group) for group in range(2)
        )

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """This rank's (position, index) pairs; a position occurs once in a run and is what augmentation seeds on."""
        # Of the first k iterations floor(k * share) belong to the second group: no state, and evenly spread.
        second = len(self._streams[1].indices)
        before = iteration * second // self.length
        group = int((iteration + 1) * second // self.length > before)
        ordinal = before if group else iteration - before
        offset = self.rank * self.batch_size
        first = ordinal * self.world_size * self.batch_size + offset
        position = iteration * self.world_size * self.batch_size + offset
        stream = self._streams[group]
        return [(position + j, stream[first + j]) for j in range(self.batch_size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration = self.start_iteration
        while True:
            yield self.batch(iteration)
            iteration += 1


def upright_images(dataset: Any) -> np.ndarray:
    """For each sample whether its image is taller than wide, from the data set's ``sizes``; reads no image.

    Raises ValueError if the data set does not know its images' sizes.
    """
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([upright_images(part) for part in dataset.datasets])
    if isinstance(dataset, Subset):
        return upright_images(dataset.dataset)[list(dataset.indices)]
    if not hasattr(dataset, "sizes"):
        raise InputError(
            f"a {type(dataset).__name__} does not know its images' sizes, so batches can't be grouped by orientation"
        )
    return dataset.sizes[:, 0] > dataset.sizes[:, 1]
