"""The noise of a detector's losses in a search, and the spread of what they tell apart."""

import json
import sys

import pytest
import torch

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare


@pytest.fixture
def loss_noise(load_benchmark):
    return load_benchmark("loss_noise")


def test_deviation_and_spread_are_those_that_the_losses_were_made_with(loss_noise):
    torch.manual_seed(0)
    batches, networks = torch.randn(400, 1).double(), 0.05 * torch.randn(500).double()
    losses = batches + networks + 0.2 * torch.randn(400, 500).double()
    deviation, spread = loss_noise.deviation_and_spread(losses)
    assert deviation == pytest.approx(0.2, rel=0.01)
    assert spread == pytest.approx(networks.std().item(), rel=0.03)
    assert loss_noise.deviation_and_spread(batches.expand(400, 3)) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.slow
def test_of_a_search_the_mean_of_all_samples_has_less_noise(loss_noise, tmp_path, monkeypatch):
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "8", "SEARCH.TASKS", "[det]"]
    run = Run(
        prepare(load_cfg("configs/search_digits.yaml", [*opts, "OUTPUT_DIR", str(tmp_path / "run")]), 1)
    )
    run.train()
    run.close()
    output = tmp_path / "out.json"
    monkeypatch.setattr(
        sys, "argv", ["loss_noise.py", str(tmp_path / "run"), "--quick", "--output", str(output)]
    )
    loss_noise.main()
    sampled, whole = json.loads(output.read_text())["3 networks, 2 batches of 8 images"]
    assert 0 < whole["deviation, batch by batch"] < sampled["deviation, batch by batch"]
