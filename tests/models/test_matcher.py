import itertools

import pytest
import torch

from d2go_fbnetv5.models.maskformer_loss import dice_loss, focal_loss
from d2go_fbnetv5.models.matcher import hungarian_match, matching_cost


@pytest.mark.parametrize("num_queries,num_segments", [(4, 4), (6, 3), (3, 5), (5, 1)])
def test_no_assignment_is_cheaper(num_queries, num_segments):
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.rand(num_queries, num_segments, generator=generator, dtype=torch.float64)
        queries, segments = hungarian_match(cost)
        assert len(queries) == len(set(queries.tolist())) == len(set(segments.tolist()))
        if num_queries >= num_segments:
            choices = itertools.permutations(range(num_queries), num_segments)
            least = min(sum(cost[q, m] for m, q in enumerate(choice)) for choice in choices)
        else:
            choices = itertools.permutations(range(num_segments), num_queries)
            least = min(sum(cost[q, m] for q, m in enumerate(choice)) for choice in choices)
        assert cost[queries, segments].sum() == pytest.approx(float(least))


def test_cost_is_the_losses_it_stands_for():
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(5, 4, generator=generator)
    mask_logits = 3 * torch.randn(5, 6, 7, generator=generator)
    labels = torch.tensor([2, 0, 1])
    masks = torch.rand(3, 6, 7, generator=generator) < 0.4
    valid = torch.rand(6, 7, generator=generator) < 0.8
    cost = matching_cost(class_logits, mask_logits, labels, masks, valid, 2.0, 20.0, 3.0)
    for q in range(5):
        for m in range(3):
            logits, truth, counted = mask_logits[q][None], masks[m][None], valid[None]
            expected = (
                -2 * class_logits[q].softmax(0)[labels[m]]
                + 20 * focal_loss(logits, truth, counted)[0]
                + 3 * dice_loss(logits, truth, counted)[0]
            )
            assert cost[q, m].item() == pytest.approx(expected.item(), rel=1e-4)


def test_pixels_that_are_not_valid_do_not_count():
    class_logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    mask_logits, masks = torch.randn(2, 4, 4), torch.rand(2, 4, 4) < 0.5
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[:, 3] = False
    before = matching_cost(class_logits, mask_logits, labels, masks, valid)
    mask_logits[:, :, 3], masks[:, :, 3] = 50.0, True
    assert torch.equal(before, matching_cost(class_logits, mask_logits, labels, masks, valid))


def test_a_diverged_network_is_still_matched():
    cost = torch.tensor([[float("nan"), 1.0], [0.5, float("inf")]])
    queries, segments = hungarian_match(cost)
    assert list(zip(queries.tolist(), segments.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_no_segment_matches_nothing():
    queries, segments = hungarian_match(torch.zeros(4, 0))
    assert len(queries) == len(segments) == 0


def test_the_cost_is_the_same_under_autocast():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(20, 9), 3 * torch.randn(20, 32, 32)
    masks, valid = torch.rand(6, 32, 32) < 0.3, torch.ones(32, 32, dtype=torch.bool)
    given = (class_logits, mask_logits, torch.arange(6), masks, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matching_cost(*given)
    assert torch.equal(found, matching_cost(*given))
