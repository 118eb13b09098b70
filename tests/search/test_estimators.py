import math

import pytest
import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search import ArchDistribution, CostRegularizer
from d2go_fbnetv5.search.estimators import LossWindow, compare, effective_sample_size, importance_weights
from d2go_fbnetv5.utils.seeding import derive_generator, derive_seed


def distribution(probs):
    probs = torch.tensor(probs)
    result = ArchDistribution(*probs.shape)
    result.probs.data.copy_(probs)
    return result


def test_log_prob_is_equation_4():
    d = distribution([[[0.9, 0.4]], [[0.5, 0.2]]])
    masks = torch.tensor([[[1, 0]], [[0, 0]]])
    expected = [[0.9 * 0.6, 0.1 * 0.6], [0.5 * 0.8, 0.5 * 0.8]]
    torch.testing.assert_close(d.log_prob(masks).exp(), torch.tensor(expected))
    torch.testing.assert_close(d.log_proxy(d.log_prob(masks)).exp(), torch.tensor([0.47, 0.23]))


def test_score_has_the_sign_that_equation_10_lacks():
    d = distribution([[[0.8, 0.25]]])
    d.log_prob(torch.tensor([[[1, 0]]])).sum().backward()
    torch.testing.assert_close(d.probs.grad, torch.tensor([[[1 / 0.8, -1 / 0.75]]]))


def test_proxy_samples_have_the_mean_of_the_tasks_probabilities():
    d = distribution([[[0.9, 0.1]], [[0.5, 0.3]]])
    masks = d.sample_proxy(20000, torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(masks.mean(dim=(0, 1)), torch.tensor([0.7, 0.2]), atol=0.01, rtol=0)
    # The mixture's blocks depend on each other: cov = (0.9 - 0.5)(0.1 - 0.3) / 4 = -0.02.
    joint = (masks[:, 0, 0] * masks[:, 0, 1]).mean().item()
    assert joint == pytest.approx((0.09 + 0.15) / 2, abs=0.01)


def test_entropy_and_projection():
    d = distribution([[[0.5, 0.5]], [[0.02, 0.98]]])
    h = -(0.02 * math.log2(0.02) + 0.98 * math.log2(0.98))
    torch.testing.assert_close(d.entropy(), torch.tensor([1.0, h]))
    d.probs.data.copy_(torch.tensor([[[-3.0, 0.5]], [[1.0, 7.0]]]))
    d.project()
    torch.testing.assert_close(d.probs.data, torch.tensor([[[0.02, 0.5]], [[0.98, 0.98]]]))
    assert [t.mask for t in d.most_likely()] == [((False, False),), ((True, True),)]


def test_importance_weights_by_hand():
    ratios = torch.tensor([[2.0, 0.5, 1.5], [1.0, 1.0, 4.0], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    torch.testing.assert_close(
        importance_weights(ratios, valid, True),
        torch.tensor([[0.5, 0.125, 0.375], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]),
    )
    torch.testing.assert_close(
        importance_weights(ratios, valid, False),
        torch.tensor([[2 / 3, 0.5 / 3, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]),
    )


def test_a_single_sample_keeps_its_raw_weight():
    ratio = torch.tensor([[1.7]])
    torch.testing.assert_close(importance_weights(ratio, torch.tensor([[True]]), True), ratio)


def test_effective_sample_size():
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.0] * 4])
    torch.testing.assert_close(effective_sample_size(weights), torch.tensor([4.0, 1.0, 0.0]))


def test_window_normalizes_by_the_past_and_forgets():
    window = LossWindow(num_tasks=1, num_steps=2)
    every = torch.tensor([[True, True]])
    # Nothing in the past: the present step's own mean 2 and deviation 1.
    torch.testing.assert_close(
        window.normalize(torch.tensor([[1.0, 3.0]]), every, 0), torch.tensor([[-1.0, 1.0]])
    )
    torch.testing.assert_close(
        window.normalize(torch.tensor([[4.0, 2.0]]), every, 1), torch.tensor([[2.0, 0.0]])
    )
    # Past: 1, 3, 4, 2 with mean 2.5 and variance 1.25.
    expected = torch.tensor([[2.5 / 1.25**0.5, 7.5 / 1.25**0.5]])
    torch.testing.assert_close(window.normalize(torch.tensor([[5.0, 10.0]]), every, 2), expected)
    # The first step is forgotten: 4, 2, 5, 10 with mean 5.25 and variance 8.6875.
    expected = torch.tensor([[-0.25 / 8.6875**0.5, 0.0]])
    found = window.normalize(torch.tensor([[5.0, 5.25]]), torch.tensor([[True, False]]), 3)
    torch.testing.assert_close(found[0, 0], expected[0, 0])
    # 5, 10 and the one valid 5 are left.
    found = window.normalize(torch.tensor([[20 / 3, 0.0]]), every, 4)
    assert found[0, 0].item() == pytest.approx(0, abs=1e-6)


def test_window_does_not_blow_up_rounding_noise():
    window = LossWindow(1, 10)
    valid = torch.tensor([[True, True]])
    for step in range(3):
        assert window.normalize(torch.tensor([[0.1, 0.1]]), valid, step).abs().max() < 1e-3


def test_window_of_zero_steps_changes_nothing():
    losses = torch.tensor([[3.0, 5.0]])
    assert LossWindow(1, 0).normalize(losses, torch.tensor([[True, True]]), 0) is losses


def test_cost_regularizer_is_appendix_e():
    cost = CostRegularizer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), target=0.5, weight=10.0)
    masks = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]]).bool()
    torch.testing.assert_close(cost.relative(masks), torch.tensor([0.1, 0.7, 1.0]))
    torch.testing.assert_close(cost(masks), torch.tensor([0.0, 2.0, 5.0]))
    torch.testing.assert_close(cost.relative(torch.full((2, 2), 0.5)), torch.tensor(0.5))
    for wrong in ({"target": 1.5}, {"weight": -1.0}):
        with pytest.raises(ValueError, match="cost"):
            CostRegularizer(torch.ones(2, 2), **wrong)
    with pytest.raises(ValueError, match="not negative and not all zero"):
        CostRegularizer(torch.zeros(2, 2))


def test_each_task_has_a_target_of_its_own_and_too_little_may_have_a_price():
    """By hand: relative costs .1, .7 and 1 against .5 and .9; TuNAS' absolute value prices both sides."""
    costs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]]).bool()
    both = masks.expand(2, 3, 2, 2)
    for absolute, prices in (
        (False, [[0.0, 2.0, 5.0], [0.0, 0.0, 1.0]]),
        (True, [[4.0, 2.0, 5.0], [8.0, 2.0, 1.0]]),
    ):
        cost = CostRegularizer(costs, [0.5, 0.9], 10.0, absolute=absolute)
        torch.testing.assert_close(cost(both), torch.tensor(prices))
        torch.testing.assert_close(cost(both[:, 0]), torch.tensor(prices)[:, 0])
        topologies = [Topology(mask) for mask in masks]
        for task in range(2):
            found = cost.prices(topologies, task)
            torch.testing.assert_close(found, torch.tensor(prices[task]).double(), atol=1e-5, rtol=1e-5)
        probs = torch.full((2, 2, 2), 0.5, requires_grad=True)
        slopes = torch.autograd.grad(cost(probs).sum(), probs)[0][:, 1, 1]  # of the dearest block, at .5
        assert slopes.tolist() == pytest.approx([0.0, -4.0] if absolute else [0.0, 0.0])


def test_seeds_depend_on_every_part_of_the_key():
    keys = [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 1, 2, 0), ("a", 12)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed("a", 1) == derive_seed("a", 1)
    assert torch.equal(
        torch.rand(3, generator=derive_generator(5)), torch.rand(3, generator=derive_generator(5))
    )


def test_comparison_by_hand():
    """Each less the mean of the others of its group of three; what is not valid or alone says nothing."""
    losses = torch.tensor([[1.0, 3.0, 5.0, 2.0, 4.0, 9.0], [1.0, 3.0, 7.0, 2.0, 4.0, 9.0]])
    valid = torch.tensor([[True] * 6, [True, True, False, False, True, False]])
    expected = torch.tensor([[-3.0, 0.0, 3.0, -4.5, -1.5, 6.0], [-2.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(compare(losses, valid, 3), expected)
