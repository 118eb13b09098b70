"""Puts together what an evaluator has seen on each rank."""

import functools
import logging
from typing import TypeVar

from d2go_fbnetv5.utils.ranks import gather

logger = logging.getLogger(__name__)
Key = TypeVar("Key", int, str)
Record = TypeVar("Record")


def gather_records(records: dict[Key, Record]) -> dict[Key, Record]:
    """One record for each key (image id), from all ranks, in the keys' order; the lowest rank's where several have it.

    A collective where torch.distributed runs with several ranks: all of them must call it, and get the same.
    """
    merged: dict[Key, Record] = {}
    for rank_records in reversed(gather(records)):
        merged.update(rank_records)
    return dict(sorted(merged.items()))


@functools.cache  # a search judges dozens of topologies on the same set
def warn_unlabelled(task: str, key: str) -> None:
    """Warns, once in a process, that nothing could be counted."""
    logger.warning("%s: none of the evaluated images has labels (%s), so that its metrics are NaN", task, key)
