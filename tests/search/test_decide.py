"""What a search has found where its probabilities leave blocks undecided."""

import itertools

import pytest
import torch

from d2go_fbnetv5 import MultitaskSearch, Supernet, Topology
from d2go_fbnetv5.arch import block_costs
from d2go_fbnetv5.search import CostRegularizer, Limit, decide
from d2go_fbnetv5.search.algorithms import RandomSearch
from d2go_fbnetv5.search.decide import likeliest
from d2go_fbnetv5.tasks import DatasetInfo, build_task


@pytest.mark.parametrize("outputs", [("path0", "path1", "path2", "path3"), ("path1",), ("path3",)])
def test_the_likeliest_networks_are_those_of_the_likeliest_masks(outputs):
    """Beside all 256 masks of two stages: the same networks, in the order of the likeliest mask of each."""
    probs = 0.02 + 0.96 * torch.rand((2, 4), generator=torch.Generator().manual_seed(3))
    masks = torch.tensor(list(itertools.product([0, 1], repeat=8))).view(-1, 2, 4)
    chances = torch.where(masks > 0, probs, 1 - probs).flatten(1).double().prod(dim=1)
    expected = {}
    for i in chances.argsort(descending=True).tolist():
        expected.setdefault(Topology(masks[i]).prune(outputs))
    assert likeliest(probs, 1000, outputs) == list(expected)
    assert likeliest(probs, 7, outputs) == list(expected)[:7]


@pytest.mark.parametrize("outputs", [("path0", "path1", "path2", "path3"), ("path1",)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_likeliest_networks_within_a_limit_are_all_that_keep_it_and_the_first_fills_it(outputs, share):
    probs = 0.3 + 0.68 * torch.rand((2, 4), generator=torch.Generator().manual_seed(4))
    costs = 1 + torch.rand((2, 4), generator=torch.Generator().manual_seed(5))
    cost = lambda topology: float((torch.tensor(topology.mask) * costs).sum())  # noqa: E731
    most = share * cost(Topology.full(2).prune(outputs))
    networks = {
        Topology(torch.tensor(bits).view(2, 4)).prune(outputs) for bits in itertools.product([0, 1], repeat=8)
    }
    found = likeliest(probs, 1000, outputs, Limit(lambda topology: cost(topology) <= most, costs))
    assert set(found) == {network for network in networks if cost(network) <= most}
    # The first has as many likely blocks as there is room for.
    if share < 1:
        likely = ((probs > 0.5) & (torch.tensor(found[0].mask) == 0)).nonzero().tolist()
        for stage, path in likely:
            more = torch.tensor(found[0].mask)
            more[stage, path] = 1
            assert cost(Topology(more).prune(outputs)) > most or Topology(more).prune(outputs) == found[0]
    if share == 1:
        assert found == likeliest(probs, 1000, outputs)


def searching(kind=MultitaskSearch, weight=0.0):
    torch.manual_seed(0)
    supernet = Supernet("N", num_stages=1)
    info = DatasetInfo(class_names=("a", "b", "c"), sem_seg_names=("p", "q"))
    tasks = [build_task(name, supernet.channels, info) for name in ("cls", "seg")]
    cost = CostRegularizer(block_costs("N", (64, 64)).matrix(1), 0.0, weight) if weight else None
    return kind(supernet, tasks, cost=cost, train_weights=False)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        [
            {
                "image": torch.randn((3, 64, 64), generator=generator),
                "class_label": i % 3,
                "sem_seg": torch.randint(2, (64, 64), generator=generator),
            }
            for i in range(4)
        ]
        for _ in range(count)
    ]


def test_the_best_of_the_candidates_is_found_and_the_search_stays_as_it_was():
    search, images = searching(), batches(2)
    before = {name: value.clone() for name, value in search.state_dict().items()}
    found = decide(search, images[:1], images[1:], 64)["seg"]
    assert all(torch.equal(value, before[name]) for name, value in search.state_dict().items())

    search.train()
    networks = {
        Topology(mask).prune(("path2",)) for mask in itertools.product([0, 1], repeat=4) for mask in [[mask]]
    }
    losses = {t: sum(float(search.run([part], [t]).values[1, 0]) for part in images) for t in networks}
    assert found.candidates == len(networks) == 2
    assert found.topology == min(losses, key=losses.get)
    assert found.undecided == 1  # of the blocks that Path 2's head can see in one stage


def test_all_are_compared_on_a_few_batches_and_the_best_quarter_on_all():
    """Of a table of losses: the least mean of five batches among the four networks with the least of the first."""
    search = searching()
    search.in_features = {"cls": ("path0", "path1", "path2", "path3"), "seg": ("path2",)}
    table, met = torch.rand((5, 16), generator=torch.Generator().manual_seed(16)).double(), []
    code = lambda topology: sum(1 << i for i, kept in enumerate(topology.mask[0]) if kept)  # noqa: E731

    def loss(name, features, batch):
        if name == "cls":
            met.append((batch, features))
            return table[batch[0], features]
        return torch.zeros(())

    search.preprocess = lambda batch: None
    search.task_loss = loss
    search.supernet.forward_each = lambda inputs, topologies: list(map(code, topologies))
    found = decide(search, iter([[0]]), ([i] for i in range(1, 5)), 64)["cls"]
    quarter = table[0].argsort()[:4].tolist()
    assert len(met) == 16 + 4 * 4 and {network for batch, network in met if batch != [0]} == set(quarter)
    best = min(quarter, key=lambda network: float(table[:, network].mean()))
    assert code(found.topology) == best and found.candidates == 16
    assert best != quarter[0] and best != int(table.mean(dim=0).argmin())  # neither rule alone would do


def test_a_price_counts_in_the_decision():
    """Nothing is worth a price of a million times the loss, and a bounty would keep everything that a head can see."""
    assert decide(searching(weight=1e6), batches(1), [], 64)["seg"].topology.num_kept == 0


@pytest.mark.parametrize("count", [1, 64])
def test_what_is_found_keeps_a_limit(count):
    search = searching()
    search.in_features = {"cls": ("path0", "path1", "path2", "path3"), "seg": ("path2",)}
    search.distribution.probs.data[:] = 0.9
    costs, empty = block_costs("N", (64, 64)).matrix(1), Topology([[0, 0, 0, 0]])
    limits = {"cls": Limit(lambda topology: topology.num_kept <= 2, costs), "seg": Limit(empty.__eq__, costs)}
    images = batches(2) if count > 1 else []
    found = decide(search, images[:1], images[1:], count, limits)
    assert found["seg"].topology == empty
    assert found["cls"].topology.num_kept <= 2
    if count == 1:  # all blocks are as likely: the two that cost the least
        assert torch.tensor(found["cls"].topology.mask).flatten().nonzero().flatten().tolist() == sorted(
            costs.flatten().argsort()[:2].tolist()
        )
    # Without limits that are too tight nothing changes: the most likely one, as it is.
    loose = {name: Limit(lambda topology: True, costs) for name in ("cls", "seg")}
    assert decide(search, [], [], 1, loose)["seg"].topology == Topology([[1, 1, 1, 1]])


def test_with_one_candidate_the_most_likely_topology_is_what_was_found():
    search = searching()
    search.distribution.probs.data[0] = torch.tensor([[0.95, 0.05, 0.6, 0.4]])
    found = decide(search, [], [], 1)["cls"]
    assert (found.topology, found.candidates) == (Topology([[1, 0, 1, 0]]), 1)
    assert (
        decide(searching(RandomSearch), [], [], 64)["cls"].topology
        == searching(RandomSearch).most_likely()["cls"]
    )
