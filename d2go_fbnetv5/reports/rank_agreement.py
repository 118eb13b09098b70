"""Tells whether a search's processes agree on probabilities, as they should, and on samples, as they should not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.utils.ranks import gather, is_distributed

SAMPLES_EQUAL = "rank_samples_equal"


def rank_agreement(records: Mapping[str, Any], topologies: Sequence[Topology]) -> dict[str, float]:
    """Entries for the history of a search by several processes, {} for one by a single process. All must call it.

    Args:
        records: of this process, with the probabilities of each task under ``probs/<task>``.
        topologies: that this process sampled in the last step.

    Returns:
        ``rank_spread/<task>``: the largest difference of a probability between two processes; and
        ``rank_samples_equal``: the mean share of decisions that the samples of two processes have in common.
    """
    probs = {key[6:]: value for key, value in records.items() if key.startswith("probs/")}
    if not probs or not is_distributed():
        return {}
    return compare_ranks(gather((probs, [topology.mask for topology in topologies])))


def compare_ranks(ranks: Sequence[tuple[Mapping[str, Any], Sequence[Any]]]) -> dict[str, float]:
    """Return what `rank_agreement` returns, from each process' probabilities by task and the masks it sampled."""
    if len(ranks) < 2:
        return {}
    found = {}
    for task in ranks[0][0]:
        stacked = torch.tensor([probs[task] for probs, _ in ranks], dtype=torch.float64)
        found[f"rank_spread/{task}"] = float((stacked.amax(0) - stacked.amin(0)).max())
    if all(masks for _, masks in ranks):
        kept = [torch.tensor([[list(row) for row in mask] for mask in masks]).bool() for _, masks in ranks]
        shares = [_share_equal(a, b) for a, b in combinations(kept, 2)]
        found[SAMPLES_EQUAL] = sum(shares) / len(shares)
    return found


def _share_equal(a: Tensor, b: Tensor) -> float:
    """Return the share of equal decisions of N x S x P and M x S x P masks, over all pairs."""
    return float((a[:, None] == b[None]).double().mean())


def expected_equal(probs: Sequence[Sequence[Sequence[float]]]) -> float:
    """The share of decisions that two independent samples have in common, each drawn for a task that is drawn too.

    Args:
        probs: T x S x P.
    """
    mean = torch.tensor(probs, dtype=torch.float64).mean(0)
    return float((mean.square() + (1 - mean).square()).mean())
