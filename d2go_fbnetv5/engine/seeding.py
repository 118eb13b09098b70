"""Random numbers as a function of (seed, rank, iteration), so that a checkpoint needs no generator state."""

import random

import numpy as np
import torch


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
