import pytest
import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.reports.rank_agreement import SAMPLES_EQUAL, compare_ranks, expected_equal, rank_agreement

MASK, OTHER = ((True, False, True, True),), ((True, True, True, False),)


def test_a_single_process_has_nobody_to_agree_with():
    assert rank_agreement({"probs/cls": [[0.5] * 4]}, [Topology(MASK)]) == {}
    assert compare_ranks([({"cls": [[0.5] * 4]}, [MASK])]) == {}


def test_spread_is_the_largest_difference_and_samples_are_compared_in_pairs():
    ranks = [
        ({"cls": [[0.5, 0.25, 0.5, 0.5]], "det": [[0.5] * 4]}, [MASK, OTHER]),
        ({"cls": [[0.5, 0.5, 0.5, 0.5]], "det": [[0.5] * 4]}, [MASK, MASK]),
    ]
    found = compare_ranks(ranks)
    assert (found["rank_spread/cls"], found["rank_spread/det"]) == (0.25, 0.0)
    assert found[SAMPLES_EQUAL] == (1 + 1 + 0.5 + 0.5) / 4


def test_nothing_sampled_is_not_compared():
    assert compare_ranks([({"cls": [[0.5] * 4]}, [])] * 2) == {"rank_spread/cls": 0.0}


def test_expected_share_is_that_of_independent_samples():
    probs = torch.tensor([[[0.9, 0.2, 0.5, 0.02]] * 2, [[0.5, 0.4, 0.98, 0.02]] * 2])
    generator = torch.Generator().manual_seed(0)
    tasks = torch.randint(2, (2, 20000), generator=generator)
    first, second = (torch.rand(20000, 2, 4, generator=generator) < probs[t] for t in tasks)
    measured = (first == second).double().mean().item()
    assert expected_equal(probs.tolist()) == pytest.approx(measured, abs=0.005)
    assert expected_equal([[[1.0, 0.0, 1.0, 0.0]]]) == 1.0
