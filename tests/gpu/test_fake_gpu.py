"""The project on a GPU that is not there: what only a GPU would find is where tensors are, and when they arrive."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14),
        reason="the fake is a backend in Python, which older versions of torch have not, or in part",
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
]


EVALUATION = """
import fake_accelerator, torch
from torch import nn
fake_accelerator.enable()
from d2go_fbnetv5.engine.evaluation import evaluate

class Net(nn.Linear):
    def forward(self, batch):
        return [{"scores": super(Net, self).forward(sample["image"])} for sample in batch]

class Scores:
    def reset(self): self.found = []
    def process(self, batch, outputs): self.found += [output["scores"].tolist() for output in outputs]
    def evaluate(self): return self.found

net = Net(2, 1)
batches = [[{"image": torch.tensor([1.0, 2.0])}, {"image": torch.tensor([3.0, 4.0])}]]
expected = evaluate(net, batches, Scores())
assert evaluate(net.to("cuda"), batches, Scores()) == expected
assert not fake_accelerator.races
"""


def run(*command, timeout=60):
    # In a process of its own, for the fake cannot be taken out again.
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_evaluation_waits_for_the_predictions():
    run("-c", EVALUATION)


@pytest.mark.slow
def test_runs_on_a_gpu_end_with_the_numbers_of_the_cpu(tmp_path):
    run(HERE / "runs_on_both.py", tmp_path, timeout=1800)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["races"] == {}
    assert found["cpu"].keys() == found["cuda"].keys() == {"search", "cls", "det", "seg"}
    for name, cpu in found["cpu"].items():
        gpu = found["cuda"][name]
        # Attention takes another kernel there.
        assert gpu["weights"] == pytest.approx(cpu["weights"], rel=1e-9)
        # There are no large objects to be found, and so no APl.
        assert gpu["metrics"] == pytest.approx(cpu["metrics"], abs=1e-6, nan_ok=True)
        assert any(value > 0 for value in cpu["metrics"].values())
    # Autocast was on, and the weights stayed numbers.
    assert 0 < found["half"] < float("inf")
    assert found["half"] != found["cuda"]["search"]["weights"]
