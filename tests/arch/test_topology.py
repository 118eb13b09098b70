import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from d2go_fbnetv5 import Topology
from d2go_fbnetv5.arch import PATHS


def random_topologies(count, stages=4):
    generator = torch.Generator().manual_seed(0)
    return [Topology.random(stages, generator=generator) for _ in range(count)]


def test_is_immutable_hashable_and_round_trips():
    t = Topology([[1, 0, 0, 1], [0, 1, 1, 0]])
    assert t.mask == ((True, False, False, True), (False, True, True, False))
    assert t == Topology(np.array(t.mask)) == Topology(torch.tensor(t.mask)) == Topology(t.mask)
    assert len({t, Topology(t.mask), Topology.full(2)}) == 2
    assert Topology.from_dict(json.loads(json.dumps(t.to_dict()))) == t
    assert pickle.loads(pickle.dumps(t)) == t
    assert (t.num_stages, t.num_paths, t.num_kept, t.kept_per_path) == (2, 4, 4, (1, 1, 1, 1))
    with pytest.raises(AttributeError, match="immutable"):
        t.mask = ()


@pytest.mark.parametrize("mask", [[], [[]], [[0, 1], [1]], [[0, 2]], [["1", "0"]], "01", 3, [0, 1], [[0.5]]])
def test_wrong_masks_are_refused(mask):
    with pytest.raises(ValueError, match="mask"):
        Topology(mask)


@pytest.mark.parametrize(
    "data", [{}, [], {"mask": [[1]], "num_stages": 2}, {"mask": [[1, 0]], "num_paths": 4}]
)
def test_wrong_dictionaries_are_refused(data):
    with pytest.raises(ValueError, match="topology"):
        Topology.from_dict(data)


def test_edges_of_a_unet_are_those_of_figure_5():
    edges = Topology.named("unet", stages=3).edges()
    stage1 = [((0, p), (1, 2)) for p in range(4)]  # Stage 0 is always on, so all of it is fused
    stage2 = [((0, 1), (2, 1)), ((1, 2), (2, 1))]  # the skip connection, and the decoder's step up
    stage3 = [((0, 0), (3, 0)), ((2, 1), (3, 0))]
    assert list(edges) == stage1 + stage2 + stage3


def test_a_skipped_block_passes_its_path_on_but_is_not_fused():
    t = Topology([[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]])
    assert t.sources(3, 0) == ((0, 0),)
    assert t.sources(3, 3) == ((1, 3),)


@pytest.mark.parametrize(
    ("name", "kept"), [("linear", 0), ("unet", 3), ("fpn", 3), ("bifpn", 6), ("panet", 7)]
)
def test_named_topologies(name, kept):
    t = Topology.named(name, stages=9)
    assert (t.num_stages, t.num_kept) == (9, kept)
    # A pyramid's levels are all wanted, and every block of these topologies serves one of them.
    assert t.prune(set(PATHS)) == t


def test_named_topologies_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="'resnet'.*linear, unet"):
        Topology.named("resnet")
    with pytest.raises(ValueError, match="needs 7 to 100 stages, found 3"):
        Topology.named("panet", stages=3)


def test_unet_serves_the_high_resolution_only():
    unet = Topology.named("unet", stages=3)
    assert unet.prune({"path0"}) == unet
    assert unet.prune({"path3"}).num_kept == 0


def reachable(topology, outputs):
    """The kept blocks from which a wanted output can be reached, by following single edges forward."""
    last = {
        path: max(s for s in range(topology.num_stages + 1) if topology.keeps(s, path))
        for path in range(topology.num_paths)
    }
    goal = {(last[PATHS.index(name)], PATHS.index(name)) for name in outputs}
    edges, found = set(topology.edges()), set(goal)
    for _ in range(topology.num_stages):
        found |= {source for source, target in edges if target in found}
    return found


@pytest.mark.parametrize("outputs", [c for n in (1, 2, 4) for c in itertools.combinations(PATHS, n)])
def test_pruning_keeps_exactly_what_reaches_an_output(outputs):
    for topology in random_topologies(40):
        pruned = topology.prune(outputs)
        kept = {(s + 1, p) for s, row in enumerate(pruned.mask) for p, on in enumerate(row) if on}
        assert kept == {node for node in reachable(topology, outputs) if node[0] > 0}
        assert pruned.prune(outputs) == pruned
        live = pruned.live_nodes(outputs)
        assert {node for node in live if node[0] > 0} == kept


@pytest.mark.parametrize("outputs", [set(), {"path4"}, "path3"])
def test_pruning_needs_known_outputs(outputs):
    with pytest.raises(ValueError, match="path0, path1, path2, path3"):
        Topology.full(2).prune(outputs)


def test_random_follows_its_probability():
    generator = torch.Generator().manual_seed(1)
    share = sum(Topology.random(10, prob=0.3, generator=generator).num_kept for _ in range(200)) / 8000
    assert share == pytest.approx(0.3, abs=0.03)
    assert Topology.random(3, prob=1.0) == Topology.full(3)
    with pytest.raises(ValueError, match="prob is 2"):
        Topology.random(3, prob=2)


def test_hand_made_topologies_are_those_that_fit_each_once():
    assert Topology.hand_made(2) == {"linear": Topology([[0] * 4] * 2)}
    assert list(Topology.hand_made(4)) == ["linear", "fpn"]
    assert list(Topology.hand_made(7)) == ["linear", "fpn", "panet", "bifpn"]
    assert all(Topology.named(name, 7) == found for name, found in Topology.hand_made(7).items())
