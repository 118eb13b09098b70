"""NSGA-II over topologies (Deb et al. 2002): which networks no other one beats in all objectives at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from d2go_fbnetv5.arch import Topology

_TRIES = 200  # to breed a network that has not been told yet, before a random one is taken


def dominated_by_none(objectives: np.ndarray) -> np.ndarray:
    """Return which of N rows of N x M objectives, all to be small, are non-dominated: N booleans.

    A row is dominated by one that is nowhere greater and somewhere smaller.
    """
    no_worse = np.all(objectives[:, None] <= objectives[None], axis=2)
    better = np.any(objectives[:, None] < objectives[None], axis=2)
    return np.logical_not(np.any(no_worse & better, axis=0))


def ranks_of(objectives: np.ndarray) -> np.ndarray:
    """Return each row's rank: 0 for the non-dominated, 1 for those that are once these are gone, and so on."""
    ranks, left, rank = np.full(len(objectives), -1), np.arange(len(objectives)), 0
    while len(left):
        best = dominated_by_none(objectives[left])
        ranks[left[best]] = rank
        left, rank = left[~best], rank + 1
    return ranks


def crowding_of(objectives: np.ndarray) -> np.ndarray:
    """Return how far each row's neighbours in a front are apart, summed over the objectives; ends are infinite."""
    distance = np.zeros(len(objectives))
    for column in objectives.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if len(order) > 2 and span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


class NSGA2:
    """Asks for networks and is told their objectives: each different network once.

    Two-point crossover of parents that won a tournament of two, and each bit flipped with probability 1 / B.

    Args:
        seeds: topologies to begin with; random ones are added up to ``population``.
        prune: gives the network that a topology is, so that no network is asked for twice.
        population: parents that survive a generation, >= 2.
        generator: of all that is drawn: with the same one and the same objectives, the same is asked for.
    """

    def __init__(
        self,
        seeds: Iterable[Topology],
        prune: Callable[[Topology], Topology],
        population: int,
        generator: np.random.Generator,
    ) -> None:
        self.prune, self.population, self.generator = prune, population, generator
        self.seeds = list(dict.fromkeys(map(prune, seeds)))
        self.shape = (self.seeds[0].num_stages, self.seeds[0].num_paths)
        self.told: dict[Topology, tuple[float, ...]] = {}
        self._parents: list[Topology] = []
        self._ranks = self._crowding = np.empty(0)

    def ask(self, count: int) -> list[Topology]:
        """Return up to ``count`` networks, none of which has been told; fewer where hardly any is left."""
        asked: dict[Topology, None] = {}
        if not self.told:
            asked.update(dict.fromkeys(self.seeds[:count]))
        for _ in range(_TRIES * count):
            if len(asked) == count:
                break
            network = self.prune(Topology(self._child() if self._parents else self._random()))
            if network not in self.told:
                asked.setdefault(network)
        return list(asked)

    def tell(self, networks: Sequence[Topology], objectives: Sequence[Sequence[float]]) -> None:
        """Take in what networks are worth, each by M objectives, all to be small; the best become parents."""
        self.told.update(zip(networks, map(tuple, objectives), strict=True))
        pool = [*self._parents, *networks]
        ranks, crowding = self._rating(pool)
        order = np.lexsort((-crowding, ranks))[: self.population]
        self._parents = [pool[i] for i in order]
        self._ranks, self._crowding = ranks[order], crowding[order]

    def front(self) -> list[Topology]:
        """Return the non-dominated ones of all that were told, best in the first objective last."""
        networks = list(self.told)
        best = dominated_by_none(np.array([self.told[network] for network in networks]))
        front = [network for network, is_best in zip(networks, best, strict=True) if is_best]
        return sorted(front, key=lambda network: (self.told[network][1:], self.told[network][0]))

    def _rating(self, networks: Sequence[Topology]) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks, and crowding within each rank."""
        objectives = np.array([self.told[network] for network in networks])
        ranks, crowding = ranks_of(objectives), np.zeros(len(networks))
        for rank in np.unique(ranks):
            crowding[ranks == rank] = crowding_of(objectives[ranks == rank])
        return ranks, crowding

    def _random(self) -> np.ndarray:
        return self.generator.random(self.shape) < self.generator.random()

    def _child(self) -> np.ndarray:
        mother, father = (np.array(self._parents[self._winner()].mask).flatten() for _ in range(2))
        first, last = np.sort(self.generator.integers(0, mother.size + 1, 2))
        child = mother.copy()
        child[first:last] = father[first:last]
        return (child ^ (self.generator.random(child.size) < 1 / child.size)).reshape(self.shape)

    def _winner(self) -> int:
        one, other = (int(i) for i in self.generator.integers(0, len(self._parents), 2))
        return min(one, other, key=lambda i: (self._ranks[i], -self._crowding[i]))
