import sys
from pathlib import Path

import pytest
import yaml
from d2go_fbnetv5.tools.pseudo_label import main

from d2go_fbnetv5.data import DigitScenes, write_multitask
from d2go_fbnetv5.engine.log import setup_logging

sys.path.insert(0, str(Path(__file__).parent))  # where planted_teachers:Truth is looked for


@pytest.fixture(scope="session", autouse=True)
def console():
    """Messages go where they go for the whole session, not where the first test's are caught."""
    setup_logging(is_main=True)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The index of 26 scenes with all labels."""
    return write_multitask(
        DigitScenes(size=(40, 48), num_images=26), tmp_path_factory.mktemp("scenes") / "set"
    )


@pytest.fixture
def label(tmp_path):
    """Runs pseudo_label with settings and flags, into tmp_path/out; gives the exit status."""

    def run(settings, *flags, output="out"):
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump({"DEVICE": "cpu", "NUM_WORKERS": 0, **settings}))
        return main(["--config-file", str(file), "--output-dir", str(tmp_path / output), *flags])

    return run
