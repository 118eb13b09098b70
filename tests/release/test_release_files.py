"""What a release carries beside its code: files for hosts and people, which nothing else here reads."""

import re
from pathlib import Path

import pytest
import yaml

from d2go_fbnetv5.version import __version__

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def targets():
    lines = re.findall(r"^([a-z][a-z -]*):", MAKEFILE, flags=re.MULTILINE)
    return {target for line in lines for target in line.split()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_the_makefile_has(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {run.split()[1] for run in runs if run.startswith("make ")}
    assert called and called <= targets()


def test_the_workflows_do_all_that_our_own_ci_does():
    wanted = set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert wanted == {run.split()[1] for run in runs if run.startswith("make ")}


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    assert citation["preferred-citation"]["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_forms_and_hooks_are_well_formed():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert all(part["attributes"]["label"] for part in form["body"])
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    tools = {hook["entry"].split()[0] for hook in hooks["hooks"]}
    assert all(tool.replace(".venv/bin", "$(BIN)") in MAKEFILE for tool in tools)
