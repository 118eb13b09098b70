"""The front door: names that users import, found when they are asked for, and what importing us does not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import d2go_fbnetv5

ROOT = Path(d2go_fbnetv5.__file__).parent


def for_type_checkers():
    """Return the names that a type checker sees."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.name for node in block.body for alias in node.names}


def test_each_public_name_is_found_and_is_what_type_checkers_see():
    assert all(getattr(d2go_fbnetv5, name) is not None for name in d2go_fbnetv5.__all__)
    assert set(d2go_fbnetv5.__all__) == for_type_checkers() | {"__version__"}
    assert set(d2go_fbnetv5.__all__) <= set(dir(d2go_fbnetv5))
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        d2go_fbnetv5.create_modle  # noqa: B018


def test_what_users_add_goes_to_the_one_registry_of_its_kind():
    from d2go_fbnetv5.data.registry import list_datasets
    from d2go_fbnetv5.tasks import list_tasks

    class Nothing(d2go_fbnetv5.Task):
        pass

    d2go_fbnetv5.register_task("nothing")(Nothing)
    d2go_fbnetv5.register_dataset("nothing")(list)
    assert "nothing" in list_tasks() and "nothing" in list_datasets()


def test_importing_us_loads_no_library_of_pictures_or_tables():
    folders = [path.parent for path in sorted(ROOT.glob("*/__init__.py")) if path.parent.name != "plugins"]
    modules = ["d2go_fbnetv5", *(f"d2go_fbnetv5.{folder.name}" for folder in folders), "d2go_fbnetv5.zoo"]
    assert len(modules) > 10
    program = f"""
import importlib, sys
import d2go_fbnetv5
assert "torch" not in sys.modules
for name in {modules!r}:
    importlib.import_module(name)
for name in d2go_fbnetv5.__all__:
    getattr(d2go_fbnetv5, name)
print([name for name in ("cv2", "matplotlib", "rich", "sklearn", "timm", "onnx") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.stdout == "[]\n", run.stdout + run.stderr
