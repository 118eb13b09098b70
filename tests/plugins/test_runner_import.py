"""d2go_fbnetv5.runner where D2Go is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def import_without(missing: str, before: str = "") -> str:
    """The last line of what Python says."""
    program = f"""
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
{before}
sys.meta_path.insert(0, Missing())
import d2go_fbnetv5.runner
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert run.returncode == 1
    assert "During handling" not in run.stderr
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize("missing", ["d2go", "detectron2", "mobile_cv"])
def test_without_a_host_it_says_so_in_one_sentence(missing):
    stand_ins = "from d2go_fbnetv5.plugins.stand_ins import install_stand_ins; install_stand_ins()"
    last = import_without(missing, stand_ins)
    assert last.startswith("ImportError: d2go_fbnetv5.runner needs D2Go, Detectron2 and mobile_cv, of which ")
    assert last.endswith("tools/train_net.py trains, evaluates and reports without any of them")


def test_without_what_d2go_asks_for_it_names_the_command_that_stands_in(d2go):
    assert import_without("pkg_resources") == (
        "ImportError: D2Go asks for pkg_resources, which these packages do not have; python -m d2go_fbnetv5.d2go runs "
        "its commands with stand-ins"
    )
