"""The notebooks of docs/notebooks/: every code cell runs, one after another, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_links_lead_somewhere(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 4 and content["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for text in cells(path, "markdown"):
        for target in [part.split(")")[0] for part in text.split("](")[1:]]:
            assert (path.parent / target).is_file(), target
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert sum(f"notebooks/{path.name})" in page.read_text(encoding="utf-8") for page in pages) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path):
    if path.stem == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed (it is not on PyPI)")
    program = tmp_path / "cells.py"
    program.write_text("\n".join(cells(path, "code")), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    left = {"quickstart": "output/det_digits/model_final.pth", "detectron2": "topologies.json"}[path.stem]
    assert (tmp_path / left).is_file()
