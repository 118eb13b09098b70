"""Tests that are marked `gpu` have a GPU, or are left out. `make gpu-check` runs them beside its measurements."""

import json
import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or "GPU_CHECK_DEVICE" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


def pytest_runtest_logreport(report):
    """A line for each test at once, so that one that hangs does not take the others' results with it."""
    file = os.environ.get("GPU_CHECK_RESULTS")
    if file and (report.when == "call" or not report.passed):
        row = {
            "test": report.nodeid.split("::")[-1],
            "outcome": report.outcome,
            **dict(report.user_properties),
        }
        if report.failed:
            row["why"] = str(report.longrepr).strip().splitlines()[-1][:300]
        with open(file, "a") as lines:
            lines.write(json.dumps({**row, "seconds": round(report.duration, 1)}) + "\n")


@pytest.fixture
def device():
    """The device; a CPU's where GPU_CHECK_DEVICE says so, which shows that the tests themselves run."""
    return os.environ.get("GPU_CHECK_DEVICE", "cuda")
