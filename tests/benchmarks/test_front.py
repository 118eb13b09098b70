"""A front replayed on a table of losses, beside the true one."""

import json
import sys

import numpy as np
import pytest

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare


@pytest.fixture
def front(load_benchmark):
    return load_benchmark("front")


def test_hypervolume_is_the_area_that_points_dominate(front):
    points = np.array([[1.0, 3.0], [2.0, 1.0], [2.5, 2.0], [0.5, 9.0], [9.0, 0.5]])
    # (1, 3) up to (4, 4) is 3 x 1; (2, 1) adds 2 x 2 below it; the third is dominated, the others lie outside.
    assert front.hypervolume(points, np.array([4.0, 4.0])) == 7.0


@pytest.mark.slow
def test_searched_fronts_have_more_than_random_networks_where_blocks_pay_alike(front, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    opts = {
        "SOLVER.MAX_ITER": 1,
        "SOLVER.IMS_PER_BATCH": 4,
        "SEARCH.EVAL.MAX_IMAGES": 4,
        "SEARCH.EVAL.BN_ITERS": 1,
    }
    opts |= {"SEARCH.TASKS": "[seg]", "SEARCH.SAMPLES_PER_RANK": 2, "OUTPUT_DIR": folder}
    run = Run(
        prepare(load_cfg("configs/search_digits.yaml", [str(x) for pair in opts.items() for x in pair]), 1)
    )
    run.train()
    run.conclude()
    run.close()
    # Each block takes something off the loss, those of Path 1 the most.
    table = {
        repr(network): {"loss": 2 - sum(0.1 * row[1] + 0.01 * sum(row) for row in network.mask)}
        for network in front.distinct_networks(["path1"], 4)
    }
    (tmp_path / "networks.json").write_text(json.dumps({"seg": table}))
    output = tmp_path / "out.json"
    command = ["front.py", str(folder), "--quick", "--judged", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    front.main()
    (row,) = json.loads(output.read_text())["Hypervolume of 40 evaluations, by the true front's, 2 seeds"]
    assert row["networks"] == 3984
    assert row["random, median"] < row["search, least"] <= row["search, median"] <= 1
