"""Benchmarks as modules: they are files that import one another, and no package."""

import importlib.util
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load_benchmark():
    """Import a benchmark by its name, beside the others while the tests of a file run."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", _FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    sys.path.insert(0, str(_FOLDER))
    yield load
    sys.path.remove(str(_FOLDER))
