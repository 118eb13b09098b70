"""What every test starts from: the names that the package itself registers."""

import sys

import pytest

import d2go_fbnetv5.engine.train
import d2go_fbnetv5.pseudo_labels.teachers  # noqa: F401 (both register what they hold once, when they are imported)
from d2go_fbnetv5.utils.registry import Registry


@pytest.fixture(autouse=True)
def registered_names():
    """Forget, after each test, the families, tasks, readers and so on that it registered."""
    before = [(registry, dict(registry.entries)) for registry in _registries()]
    yield
    for registry, entries in before:
        registry.entries.clear()
        registry.entries.update(entries)


def _registries():
    modules = [module for name, module in sys.modules.copy().items() if name.startswith("d2go_fbnetv5")]
    found = {
        id(value): value for module in modules for value in vars(module).values() if type(value) is Registry
    }
    return found.values()
