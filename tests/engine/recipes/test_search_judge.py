import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology, block_costs
from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge
from d2go_fbnetv5.engine.recipes.search_judge import SearchJudge, random_topology
from d2go_fbnetv5.search import Decision, MultitaskSearch
from d2go_fbnetv5.tasks import build_task

STAGES = 3


@pytest.fixture(scope="module")
def costs():
    return block_costs("N", (64, 64))


@pytest.mark.parametrize("outputs", [("path3",), ("path2",)])
def test_random_topologies_cost_as_much_or_more(costs, outputs):
    generator = torch.Generator().manual_seed(0)
    for prob in (0.0, 0.5, 0.9):
        searched = Topology.random(STAGES, prob=prob, generator=generator)
        least = costs.network(searched, outputs)
        drawn = [random_topology(costs, outputs, STAGES, least, generator) for _ in range(20)]
        assert all(costs.network(topology, outputs) >= least for topology in drawn)
        assert len(set(drawn)) > 10 or prob == 0.9  # few cost as much as nearly all blocks


def test_random_topologies_at_the_ends(costs):
    generator = torch.Generator().manual_seed(0)
    most = costs.network(Topology.full(STAGES), ("path3",))
    assert costs.network(random_topology(costs, ("path3",), STAGES, most, generator), ("path3",)) == most
    # Nothing to reach: the random search of Table 5, which keeps half of the blocks.
    drawn = [random_topology(costs, ("path3",), STAGES, 0.0, generator).num_kept for _ in range(200)]
    assert sum(drawn) / (200 * 4 * STAGES) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="no topology costs"):
        random_topology(costs, ("path3",), STAGES, most + 1, generator)


@pytest.fixture
def search():
    torch.manual_seed(0)
    supernet = Supernet("N", STAGES)
    info = DigitScenes("val", 64, 2).info
    tasks = [build_task(name, supernet.channels, info) for name in ("cls", "seg")]
    return MultitaskSearch(supernet, tasks, samples_per_rank=1)


def test_a_result_leaves_weights_and_statistics_as_they_were(search, costs):
    data = DigitScenes("val", 64, 8)
    batches = [[data[i] for i in range(start, start + 4)] for start in (0, 4)]
    with torch.no_grad():
        search.distribution.probs.uniform_(0.2, 0.8, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in search.state_dict().items()}
    shares = []
    judge = SearchJudge(NetworkJudge(search, data.info, batches, batches), costs)
    found = Decision(search.most_likely()["cls"], candidates=1, undecided=0)
    (result,) = judge.results({"cls": found}, num_random=2, seed=0, progress=shares.append)
    assert all(torch.equal(before[name], value) for name, value in search.state_dict().items())
    assert shares == [0.5, 1.0]
    assert result.topology == search.most_likely()["cls"]
    assert result.outputs == ("path3",) and result.metric_name == "top1"
    assert all(flops >= result.flops_pruned for flops in result.random_flops)
    assert (
        result.flops_pruned == costs.network(result.topology, ("path3",)) <= result.flops <= result.full_flops
    )
    assert result.metrics == judge.metrics({"cls": result.topology})["cls"]
    assert judge.results({"cls": found}, num_random=2, seed=0) == (result,)
