"""Random numbers as a function of where in a run they are used, so that a checkpoint needs no generator's state."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of ``key``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``key``."""
    return torch.Generator().manual_seed(derive_seed(*key))


def seed_all(seed: int, rank: int = 0, iteration: int = 0) -> None:
    """Seed Python's, numpy's and torch's global generators.

    Args:
        seed: the run's seed, >= 0.
        rank: this process, so that processes draw different numbers.
        iteration: the training step, >= 0; -1 for what comes before the first.
    """
    mixed = np.random.SeedSequence([seed, rank, iteration + 1]).generate_state(1, np.uint64)[0]
    random.seed(int(mixed))
    np.random.seed(int(mixed % 2**32))
    torch.manual_seed(int(mixed % 2**63))
