"""Random search, which the others are compared with (section 4.3, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import Losses, Search
from d2go_fbnetv5.search.parts import Sample
from d2go_fbnetv5.search.seeding import derive_generator


class RandomSearch(Search):
    """The weights are trained on topologies sampled with the first probabilities, which never learn; what it finds
    for a task is one such topology, drawn by the seed."""

    def _step(self, parts: list[Sequence[Sample]], generator: torch.Generator) -> Losses:
        _, losses = self._sample_losses(parts, generator)
        ratios = torch.ones(len(self.tasks), len(parts), device=self.distribution.probs.device)
        estimate = self._estimate(losses, ratios)
        return self._named(losses, estimate.weights, [self._zero()] * len(self.tasks))

    def most_likely(self) -> dict[str, Topology]:
        """Per task a random topology, always the same."""
        probs = self.distribution.probs.detach().cpu()
        return {
            name: Topology(
                torch.rand(p.shape, generator=derive_generator("random search", self.seed, name)) < p
            )
            for name, p in zip(self.tasks, probs, strict=True)
        }
