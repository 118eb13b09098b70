"""A run that is killed and resumed ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.reports.history import read_history

SCRIPT = Path(__file__).with_name("stub_run.py")


def run(args, **env):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in env.items()}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def final_state(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def assert_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "stopwatch":
                assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(one, other):
    assert_equal(final_state(one), final_state(other))
    timeless = [
        [{k: v for k, v in record.items() if "time" not in k} for record in read_history(folder)]
        for folder in (one, other)
    ]
    assert timeless[0] == timeless[1]


def test_stopped_anywhere_in_process(stub, stub_args, tmp_path, monkeypatch):
    """An error in the middle of a step leaves what a kill would leave: nothing is written on the way out."""
    assert stub.main(stub_args("whole")) == 0
    original = stub.StubModel.forward
    for step in (0, 1, 2, 3, 7, 11):
        folder = f"stopped{step}"

        def failing(self, batch, step=step):
            if self.training and int(self.step_count) == step:
                raise ValueError("stop")
            return original(self, batch)

        monkeypatch.setattr(stub.StubModel, "forward", failing)
        assert stub.main(stub_args(folder)) == 1
        monkeypatch.setattr(stub.StubModel, "forward", original)
        assert stub.main(stub_args(folder, "--resume")) == 0
        assert_same_run(tmp_path / "whole", tmp_path / folder)


@pytest.mark.parametrize("periods", [(3, 2), (4, 3), (2, 5)])
def test_records_are_of_the_same_steps_whatever_the_periods(stub, stub_args, tmp_path, monkeypatch, periods):
    keys = [
        item
        for key, value in zip(("SOLVER.CHECKPOINT_PERIOD", "WRITER_PERIOD"), periods, strict=True)
        for item in (key, value)
    ]
    assert stub.main(stub_args("whole", *keys)) == 0
    original = stub.StubModel.forward

    def failing(self, batch):
        if self.training and int(self.step_count) == 7:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(stub.StubModel, "forward", failing)
    assert stub.main(stub_args("stopped", *keys)) == 130
    monkeypatch.setattr(stub.StubModel, "forward", original)
    assert stub.main(stub_args("stopped", *keys, "--resume")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_averaged_weights_are_judged_beside_the_raw_ones(stub, stub_args, tmp_path):
    assert stub.main(stub_args("run")) == 0
    last = read_history(tmp_path / "run")[-1]
    assert {"eval/top1", "eval/ema/top1"} <= last.keys()
    assert last["eval/top1"] > 0.9


def test_stopped_twice_and_with_a_damaged_checkpoint(stub, stub_args, tmp_path):
    assert stub.main(stub_args("whole")) == 0
    assert stub.main(stub_args("parts", "SOLVER.STEPS", "[8]", "SOLVER.MAX_ITER", "12")) == 0
    (tmp_path / "parts" / "model_final.pth").write_bytes(b"damaged")
    (tmp_path / "parts" / "model_0000008.pth").write_bytes(b"")
    assert stub.main(stub_args("parts", "--resume")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_drawn_seed_is_kept_by_a_resumed_run(stub, stub_args, tmp_path, monkeypatch):
    original = stub.StubModel.forward

    def failing(self, batch):
        if self.training and int(self.step_count) == 7:
            raise ValueError("stop")
        return original(self, batch)

    monkeypatch.setattr(stub.StubModel, "forward", failing)
    assert stub.main(stub_args("drawn", "SEED", "-1")) == 1
    monkeypatch.setattr(stub.StubModel, "forward", original)
    assert stub.main(stub_args("drawn", "SEED", "-1", "--resume")) == 0
    config = (tmp_path / "drawn" / "config.yaml").read_text()
    seed = next(line.split()[1] for line in config.splitlines() if line.startswith("SEED"))
    assert int(seed) >= 0
    assert stub.main(stub_args("whole", "SEED", seed)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "drawn")


def test_killed_in_a_real_process(stub, stub_args, tmp_path):
    assert stub.main(stub_args("whole")) == 0
    assert run(stub_args("killed"), STUB_KILL="7:0").returncode == -signal.SIGKILL
    # Steps 6 and 7 have been recorded or begun, the checkpoint is of step 5.
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000005.pth"
    assert stub.main(stub_args("killed", "--resume")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_killed_in_one_of_two_processes(stub_args, tmp_path):
    two = ("--num-processes", "2")
    whole = run(stub_args("whole", *two))
    assert whole.returncode == 0, whole.stderr
    assert run(stub_args("killed", *two), STUB_KILL="7:1").returncode == 2
    assert run(stub_args("killed", *two, "--resume")).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    averages = [
        torch.load(tmp_path / folder / f"ema_of_rank{rank}.pth", weights_only=True)
        for folder in ("whole", "killed")
        for rank in range(2)
    ]
    for other in averages[1:]:
        assert_equal(averages[0], other)
    lines = (tmp_path / "whole" / "metrics.json").read_text().splitlines()
    assert len([line for line in lines if "loss_cls" in json.loads(line)]) == 12


def test_the_evaluation_is_recorded_though_what_follows_fails(stub, stub_args, tmp_path, monkeypatch):
    conclude = stub.StubRecipe.conclude

    def failing(self, *args):
        conclude(self, *args)
        raise OSError("the table cannot be shown")

    monkeypatch.setattr(stub.StubRecipe, "conclude", failing)
    assert stub.main(stub_args("run")) == 2
    assert "eval/ema/top1" in read_history(tmp_path / "run")[-1]
