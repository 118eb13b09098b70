"""NSGA-II on a problem whose front is known by enumeration: networks of two stages, loss and cost computed."""

import itertools

import numpy as np
import pytest

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.front.nsga import NSGA2, crowding_of, dominated_by_none, ranks_of

STAGES, OUTPUTS = 3, ("path1",)
GAINS = np.random.default_rng(5).normal(0.3, 1, (STAGES, 4))
PAIRS = np.random.default_rng(6).normal(0, 0.4, (STAGES * 4, STAGES * 4))
COSTS = np.array([4.0, 3.0, 2.0, 1.0])


def worth(topology):
    mask = np.array(topology.mask, float)
    bits = mask.flatten()
    return (float(-(GAINS * mask).sum() - bits @ PAIRS @ bits), float((mask * COSTS).sum()))


def hypervolume(points, reference=(20.0, 40.0)):
    """The area between points, both coordinates to be small, and a reference that is worse than all."""
    area, lowest = 0.0, reference[0]
    for loss, cost in sorted(points, key=lambda point: (point[1], point[0])):
        if loss < lowest:
            area += (lowest - loss) * (reference[1] - cost)
            lowest = loss
    return area


def prune(topology):
    return topology.prune(OUTPUTS)


def evolve(seed, evaluations, population=20):
    search = NSGA2([Topology([[0] * 4] * STAGES)], prune, population, np.random.default_rng(seed))
    while asked := search.ask(min(population, evaluations - len(search.told))):
        search.tell(asked, [worth(network) for network in asked])
    return search


@pytest.fixture(scope="module")
def networks():
    rows = list(itertools.product((0, 1), repeat=4))
    return list({prune(Topology(mask)): None for mask in itertools.product(rows, repeat=STAGES)})


def test_ranks_and_crowding_of_points_by_hand():
    points = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [4.0, 4.0], [2.0, 2.0]])
    assert dominated_by_none(points).tolist() == [True, True, True, False, False, True]
    assert ranks_of(points).tolist() == [0, 0, 0, 1, 2, 0]
    crowding = crowding_of(np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]]))
    assert crowding.tolist() == [np.inf, 2.0, np.inf]
    assert crowding_of(np.array([[1.0, 1.0]])).tolist() == [np.inf]


def test_the_front_of_a_quarter_of_all_networks_is_nearly_the_true_one(networks):
    best = hypervolume(map(worth, networks))
    generator = np.random.default_rng(0)
    evaluations = len(networks) // 4
    drawn = [
        hypervolume(worth(networks[i]) for i in generator.permutation(len(networks))[:evaluations])
        for _ in range(10)
    ]
    found = [hypervolume(evolve(seed, evaluations).told.values()) for seed in range(3)]
    assert min(found) >= 0.98 * best
    assert np.mean(found) > np.mean(drawn)


def test_each_different_network_is_asked_for_once_and_the_front_is_of_all_that_were_told():
    search = evolve(seed=1, evaluations=70)
    assert len(search.told) == 70
    assert all(network == prune(network) for network in search.told)
    front = search.front()
    for network in front:
        loss, cost = search.told[network]
        assert not any(a <= loss and b <= cost and (a, b) != (loss, cost) for a, b in search.told.values())
    costs = [search.told[network][1] for network in front]
    assert costs == sorted(costs) and len(front) > 3


def test_the_same_seed_asks_for_the_same_networks_and_another_for_others():
    assert list(evolve(2, 60).told) == list(evolve(2, 60).told) != list(evolve(3, 60).told)


def test_it_ends_where_no_network_is_left(networks):
    def small(topology):
        return Topology([topology.mask[0][:3] + (False,), *[(False,) * 4] * (STAGES - 1)])

    search = NSGA2([Topology([[0] * 4] * STAGES)], small, 4, np.random.default_rng(0))
    while asked := search.ask(4):
        search.tell(asked, [worth(network) for network in asked])
    assert len(search.told) == 8


def test_fronts_are_as_good_as_pymoos():
    pytest.importorskip("pymoo")
    from pymoo.algorithms.moo import nsga2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling
    from pymoo.optimize import minimize

    class Problem(ElementwiseProblem):
        def __init__(self):
            super().__init__(n_var=STAGES * 4, n_obj=2, xl=0, xu=1, vtype=bool)

        def _evaluate(self, x, out, *args, **kwargs):
            out["F"] = worth(prune(Topology(x.reshape(STAGES, 4).astype(int))))

    theirs, ours = [], []
    for seed in range(5):
        algorithm = nsga2.NSGA2(
            pop_size=20,
            sampling=BinaryRandomSampling(),
            crossover=TwoPointCrossover(),
            mutation=BitflipMutation(),
            eliminate_duplicates=True,
        )
        result = minimize(Problem(), algorithm, ("n_eval", 200), seed=seed)
        theirs.append(hypervolume(map(tuple, result.F)))
        ours.append(hypervolume(evolve(seed, 200).told.values()))
    assert np.mean(ours) >= np.mean(theirs) - 2 * np.std(theirs)
