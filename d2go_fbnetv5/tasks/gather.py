"""What an evaluator has seen on each rank, put together."""

from typing import TypeVar

import torch.distributed as dist

Record = TypeVar("Record")


def gather_records(records: dict[int, Record]) -> dict[int, Record]:
    """One record for each image id, from all ranks, in the order of the ids; the lowest rank's where several have it.

    A collective where torch.distributed runs with several ranks: all of them must call it, and get the same.
    """
    per_rank = [records]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        per_rank = [None] * dist.get_world_size()
        dist.all_gather_object(per_rank, records)
    merged: dict[int, Record] = {}
    for rank_records in reversed(per_rank):
        merged.update(rank_records)
    return dict(sorted(merged.items()))
