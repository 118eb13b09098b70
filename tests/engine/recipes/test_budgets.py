"""SEARCH.COST.BUDGET: what is found keeps it, whatever the probabilities say."""

import pytest

from d2go_fbnetv5.arch import block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import prepare, train

OPTS = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SEARCH.SAMPLES_PER_RANK": 2,
    "SEARCH.INIT_PROB": 0.9,
    "SEARCH.EVAL.MAX_IMAGES": 2,
    "SEARCH.EVAL.BN_ITERS": 1,
    "SEARCH.EVAL.RANDOM_TOPOLOGIES": 0,
    "FBNETV5_DATA.DATASETS.digit_scenes_val.num_images": 2,
}


@pytest.mark.parametrize("candidates", [1, 4])
def test_a_search_whose_probabilities_want_all_blocks_finds_networks_within_the_budgets(tmp_path, candidates):
    more = {
        "OUTPUT_DIR": tmp_path,
        "SEARCH.TASKS": "[cls, seg]",
        "SEARCH.COST.BUDGET": "{seg: 7.0e+6}",
        "SEARCH.EVAL.CANDIDATES": candidates,
    }
    opts = [str(part) for item in (OPTS | more).items() for part in item]
    train(prepare(load_cfg("search_digits.yaml", opts), 1))
    found, costs = load_topologies(tmp_path / "topologies.json").tasks, block_costs("N", (96, 96))
    cls, seg = (
        costs.network(found[name].topology.prune(found[name].outputs), found[name].outputs)
        for name in ("cls", "seg")
    )
    assert 6.0e6 < seg <= 7.0e6
    assert cls > 14.0e6  # of which there is no budget
