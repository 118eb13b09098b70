import importlib.util
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("stub_run.py")


def _load():
    spec = importlib.util.spec_from_file_location("stub_run", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["stub_run"] = module
    spec.loader.exec_module(module)
    return module


# Before the first test, after which the names that it has registered would be forgotten.
_STUB = _load()


@pytest.fixture
def stub():
    """The module stub_run: a tiny model, data set and configuration."""
    return _STUB


@pytest.fixture
def stub_args(stub, tmp_path):
    """Builds train_net's arguments for the stub and an output folder of this test."""
    config = tmp_path / "stub.yaml"
    config.write_text(stub.CONFIG)

    def build(folder, *more):
        return ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path / folder), *map(str, more)]

    return build
