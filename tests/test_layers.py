"""The package's layers: who may import whom, and that the core needs no host."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "d2go_fbnetv5"

# What a layer may import besides itself, and the modules of ours that anyone may.
ALLOWED = {
    "utils": set(),
    "arch": set(),
    "search": {"arch"},
    "tasks": {"arch"},
    "models": {"arch", "tasks"},
    "data": {"arch", "tasks"},
    "reports": {"arch"},
    "engine": {"arch", "search", "tasks", "models", "data", "reports"},
    "front": {"arch", "search", "tasks", "models", "data", "reports", "engine"},
    "export": {"arch", "tasks", "models", "data", "reports", "engine", "zoo"},
    "zoo": {"arch", "models", "data", "engine"},
    "pseudo_labels": {"arch", "tasks", "models", "data", "reports", "engine", "export", "zoo"},
    "plugins": {"arch", "search", "tasks", "models", "data", "reports", "engine", "export", "zoo"},
    "pipeline": {"arch", "data", "reports", "engine", "export", "pseudo_labels"},
    "hub": {"arch", "engine", "reports"},
    "runner": {"plugins"},
    "d2go": {"plugins"},
    "__init__": {
        "arch",
        "search",
        "tasks",
        "models",
        "data",
        "engine",
        "export",
        "hub",
        "pseudo_labels",
        "zoo",
    },
}
ANYONE = {"version", "utils"}
HOSTS = ("detectron2", "d2go", "mobile_cv")
# Outside of the plugins these alone may import a host, where they are called (the last test sees to that).
HOST_TEACHERS = tuple(
    f"pseudo_labels/teachers/detectron2_{part}.py" for part in ("config", "models", "weights")
)


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it; ``package`` resolves relative ones."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            # "from d2go_fbnetv5 import arch" names the module in the second place.
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def wrong_imports(path: Path, source: str) -> list[str]:
    relative = path.relative_to(ROOT)
    layer = relative.parts[0].removesuffix(".py")
    package = ("d2go_fbnetv5", *relative.parts[:-1])
    wrong = []
    for name in sorted(imported_modules(ast.parse(source), package)):
        top, _, rest = name.partition(".")
        if top in HOSTS and layer != "plugins" and relative.as_posix() not in HOST_TEACHERS:
            wrong.append(f"{relative} imports {name}")
        if top == "d2go_fbnetv5":
            target = rest.split(".")[0]
            modules = {p.name.removesuffix(".py") for p in ROOT.iterdir()}
            if target in modules and target not in ALLOWED[layer] | ANYONE | {layer}:
                wrong.append(f"{relative} imports {name}")
            if target not in modules and layer != "__init__" and target != "__version__":
                wrong.append(f"{relative} imports {name} through the package's front door")
    return wrong


def test_imports_point_in_one_direction_only():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    assert [line for path in files for line in wrong_imports(path, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("arch/x.py", "from d2go_fbnetv5.search import MultitaskSearch"),
        ("arch/x.py", "def f():\n    import d2go_fbnetv5.engine.config"),
        ("search/x.py", "from ..tasks.base import Task"),
        ("tasks/x.py", "from d2go_fbnetv5 import data"),
        ("data/x.py", "from d2go_fbnetv5.engine import config"),
        ("engine/x.py", "import detectron2.config"),
        ("search/x.py", "from d2go_fbnetv5 import Topology"),
    ],
)
def test_a_wrong_import_is_found(file, source):
    assert len(wrong_imports(ROOT / file, source)) == 1


def test_right_imports_pass():
    lines = ["import torch", "from d2go_fbnetv5.version import __version__", "from ..arch import Topology"]
    source = "\n".join([*lines, "from .base import Task"])
    assert wrong_imports(ROOT / "tasks" / "x.py", source) == []


def test_core_imports_without_the_hosts():
    files = [path.relative_to(ROOT.parent).with_suffix("") for path in sorted(ROOT.rglob("*.py"))]
    core = [".".join(file.parts) for file in files if file.parts[1] not in ("plugins", "runner")]
    assert len(core) > 100  # every file, those of a folder without __init__.py too
    program = f"""
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HOSTS!r}:
            raise ImportError(f"blocked: {{name}}")

sys.meta_path.insert(0, Blocked())
for name in {core!r}:
    importlib.import_module(name)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=300,  # a busy machine takes minutes to import torch
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


# Shorter than a page on purpose: what others import by this name, or a single thing that stands on its own floor.
SHORT = {
    "runner.py": "D2Go's --runner names it",
    "version.py": "setup.py reads it",
    "utils/extras.py": "every floor may need it",
}


def test_a_folder_can_be_overseen_and_a_file_is_worth_opening():
    """25 files a folder at most, 25 lines a file at least; a folder's face, its __init__.py, may be short."""
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert {folder.name for folder in folders if len(list(folder.glob("*.py"))) > 25} == set()
    files = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    short = [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) < 25]
    assert {path.relative_to(ROOT).as_posix() for path in short} <= set(SHORT)


def test_one_file_asks_whether_torch_distributed_runs():
    asking = [path for path in ROOT.rglob("*.py") if "is_initialized" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(ROOT).as_posix() for path in asking] == ["utils/ranks.py"]
