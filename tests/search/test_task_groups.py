"""Tasks that share one distribution, for one network with several heads."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5 import MultitaskSearch, Topology
from d2go_fbnetv5.search import AdditionSearch, CostRegularizer, decide

_spec = importlib.util.spec_from_file_location("objectives", Path(__file__).with_name("objectives.py"))
objectives = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(objectives)
SHAPE = (2, 2)
SEED = 41  # of two objectives whose sum is least elsewhere than either
COSTS = torch.arange(1.0, 5.0).reshape(SHAPE)


def searching(count=3, groups=(("t0", "t2"),), **options):
    tasks = objectives.random_tasks(count, 4, seed=0, noise=0.0)
    search = MultitaskSearch(
        objectives.MaskSupernet(*SHAPE), tasks, preprocess=len, groups=groups, **options
    ).double()
    with torch.no_grad():
        search.distribution.probs.uniform_(0.2, 0.8, generator=torch.Generator().manual_seed(1))
    search.after_step()
    return search, tasks


def test_a_group_has_one_distribution_and_the_others_one_each():
    search, _ = searching()
    probs = search.distribution.probs
    assert search.groups == (("t0", "t2"), ("t1",))
    assert torch.equal(probs[0], probs[2]) and not torch.equal(probs[0], probs[1])


@pytest.mark.parametrize("expected", [False, True])
def test_it_learns_from_the_sum_of_the_losses_and_pays_the_price_once(expected):
    """Enumerating q, the gradient of the shared distribution is that of E_p[loss_0 + loss_2 + price], of the other
    that of E_p[loss_1 + price]."""
    cost = CostRegularizer(COSTS, 0.1, 2.0, expected=expected)
    cost.expectation = partial(cost.expectation, samples=4096)
    search, tasks = searching(samples_per_rank=1, loss_window=0, self_normalize=False, cost=cost)
    masks, probs = objectives.all_masks(*SHAPE), search.distribution.probs
    log_prob = search.distribution.log_prob(masks)
    proxy = search.distribution.log_proxy(log_prob).exp().detach()
    values = torch.stack([task.objective(masks) for task in tasks])
    price = cost(search.distribution.learning) if expected else (log_prob.exp() * cost(masks)).sum(1)
    total = (log_prob.exp() * values).sum() + price[0] + price[1]
    exact = torch.autograd.grad(total, probs)[0]
    gradient = torch.zeros_like(probs)
    for mask, chance in zip(masks, proxy, strict=True):
        search.distribution.sample_proxy = lambda *_, mask=mask: mask[None]
        losses = search([{}])
        surrogate = sum(value for key, value in losses.items() if key.startswith("loss_arch_"))
        gradient += chance * torch.autograd.grad(surrogate, probs)[0]
    torch.testing.assert_close(gradient, exact, atol=1e-6 if expected else 5e-3, rtol=0)
    assert not gradient[2].any()


def test_a_search_finds_the_best_network_for_both():
    """Of the known objectives' sum the optimum, at which neither task alone has its own."""
    tasks = objectives.random_tasks(2, 4, seed=SEED, noise=0.0)
    both = lambda masks: tasks[0].objective(masks) + tasks[1].objective(masks)  # noqa: E731
    masks = objectives.all_masks(*SHAPE)
    best = masks[int(both(masks).argmin())]
    own = [masks[int(task.objective(masks).argmin())] for task in tasks]
    assert not any(torch.equal(best, each) for each in own)
    search = objectives.run_search(
        tasks, SHAPE, steps=80, samples=8, lr=0.04, groups=[["t1", "t0"]], loss_window=0, shared_images=True
    )
    assert set(search.most_likely().values()) == {Topology(best)}


def test_rows_of_a_group_stay_equal_to_the_last_bit():
    tasks = objectives.random_tasks(3, 4, seed=2, noise=0.5)
    search = objectives.run_search(tasks, SHAPE, steps=20, samples=4, lr=0.01, groups=[["t0", "t1", "t2"]])
    probs = search.distribution.probs
    assert torch.equal(probs[0], probs[1]) and torch.equal(probs[0], probs[2])
    assert not torch.equal(probs[0], torch.full_like(probs[0], 0.5))


def test_what_is_decided_is_the_best_for_all_of_a_group():
    """Each task's loss counts in units of its deviation: a task in a unit a hundred times as large counts alike."""
    tasks = objectives.random_tasks(2, 4, seed=SEED, noise=0.0)
    tasks[1].linear, tasks[1].pairwise = 100 * tasks[1].linear, 100 * tasks[1].pairwise
    search = MultitaskSearch(objectives.MaskSupernet(*SHAPE), tasks, preprocess=len, groups=[["t0", "t1"]])
    search.in_features = dict.fromkeys(search.tasks, ("path0", "path1"))
    search.task_loss = lambda name, features, batch: search.tasks[name].objective(features["mask"])
    losses = torch.stack([task.objective(objectives.all_masks(*SHAPE)) for task in tasks])
    sums = [torch.full((2,), 16.0), losses.sum(1), losses.square().sum(1)]
    search.window.sums[0] = torch.stack(sums, dim=1)
    decided = decide(search, [[{}]], [], 16)
    networks = {Topology(mask).prune(("path0", "path1")) for mask in objectives.all_masks(*SHAPE)}
    units = losses.std(dim=1, unbiased=False).tolist()

    def best(scales):
        def lost(network):
            mask = torch.tensor(network.mask)
            return sum(float(task.objective(mask)) / scale for task, scale in zip(tasks, scales, strict=True))

        return min(networks, key=lost)

    assert decided["t0"] == decided["t1"] and decided["t0"].candidates == len(networks)
    assert decided["t0"].topology == best(units) != best([1.0, 1.0])


def test_heads_of_a_group_share_what_they_read():
    search, _ = searching()
    search.in_features = {"t0": ("path3",), "t1": ("path2",), "t2": ("path1", "path3")}
    assert search.outputs("t0") == search.outputs("t2") == ("path3", "path1")
    assert search.outputs("t1") == ("path2",)


@pytest.mark.parametrize("groups", [[["t0", "t0"]], [["t0"], ["t1", "t0"]], [["t0", "other"]]])
def test_a_task_is_in_one_group_and_known(groups):
    with pytest.raises(
        ValueError, match=r"^groups have '(t0|other)', allowed: each of \['t0', 't1', 't2'\], once"
    ):
        searching(groups=groups)


def test_tasks_that_are_added_together_may_share_a_distribution():
    tasks = objectives.random_tasks(3, 4, seed=0, noise=0.0)
    supernet = torch.nn.Module()
    supernet.num_stages, supernet.num_paths = SHAPE
    search = AdditionSearch(
        supernet, tasks, num_earlier=1, arch_warmup_iters=1, preprocess=len, groups=[["t1", "t2"]]
    )
    with torch.no_grad():
        search.distribution.probs[0] = 0.9
    search._start()
    expected = torch.tensor([0.9, 0.7, 0.7])[:, None, None].expand(3, *SHAPE)
    torch.testing.assert_close(search.distribution.probs.detach(), expected)
