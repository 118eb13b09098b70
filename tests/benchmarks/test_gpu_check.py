"""`make gpu-check` on a CPU: every part but compilation runs, and what it measures is in its tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_checks_of_a_gpu_run_on_a_cpu(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--quick",
        "--output",
        str(tmp_path / "gpu.json"),
    ]
    command += ["--parts", "models", "search", "steps", "waits", "deterministic"]
    command += ["--tests", "float32 and learns or refused"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["ended"].values()) == {"done"}
    assert [row["outcome"] for part in ("search", "models") for row in found[part]] == ["passed", "passed"]
    tasks = {row["T"] for row in found["steps"] if row["step"] == "Algorithm 4, light heads"}
    assert tasks == {1, 3, 6}
    assert all(row["ms"] > 0 for part in ("steps", "waits", "deterministic") for row in found[part])
    assert {row["waits"] for row in found["waits"]} == {0}  # a CPU has nobody to wait for
    assert "### Training steps" in (tmp_path / "gpu.md").read_text()
