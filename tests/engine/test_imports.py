import multiprocessing
import sys

import pytest

from d2go_fbnetv5.data import list_datasets
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.imports import import_modules
from d2go_fbnetv5.pseudo_labels.settings import load_settings
from d2go_fbnetv5.utils.errors import InputError

READER = """
from d2go_fbnetv5.data import DigitScenes, register_dataset

@register_dataset("{name}")
def scenes():
    return DigitScenes("train", 32, 4)
"""


@pytest.fixture(autouse=True)
def _path_stays(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_modules_beside_the_file_and_in_the_current_folder_are_imported(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "imports_beside.py").write_text(READER.format(name="imports_beside"))
    (tmp_path / "here" / "imports_here.py").write_text(READER.format(name="imports_here"))
    file = tmp_path / "there" / "c.yaml"
    file.write_text("IMPORTS: [imports_beside, imports_here]\n")
    monkeypatch.chdir(tmp_path / "here")
    cfg = load_cfg(file)
    assert {"imports_beside", "imports_here"} <= set(list_datasets())
    assert [str(tmp_path / "there")] == cfg.IMPORT_FOLDERS

    # A run's configuration lies elsewhere, and is opened from elsewhere.
    (tmp_path / "run").mkdir()
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(cfg.dump())
    del sys.modules["imports_beside"], sys.path[:]
    with pytest.raises(InputError, match="IMPORTS: .*is registered already"):
        load_cfg(saved)  # it was found and run once more


def test_a_folder_of_modules_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "imports_home.py").write_text(READER.format(name="imports_home"))
    load_cfg(None, ["IMPORTS", "[imports_home]", "IMPORT_FOLDERS", "[~/mine]"])
    assert "imports_home" in list_datasets()


def _list_after_import(cfg, queue):
    import_modules(cfg)
    queue.put(list_datasets())


def test_a_spawned_process_imports_them_too(tmp_path):
    (tmp_path / "imports_spawned.py").write_text(READER.format(name="imports_spawned"))
    (tmp_path / "c.yaml").write_text("IMPORTS: [imports_spawned]\n")
    cfg = load_cfg(tmp_path / "c.yaml")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    del sys.modules["imports_spawned"], sys.path[-1]
    from d2go_fbnetv5.data import registry

    registry._DATASETS.entries.pop("imports_spawned")
    process = context.Process(target=_list_after_import, args=(cfg, queue))
    process.start()
    assert "imports_spawned" in queue.get(timeout=60)
    process.join()


def test_pseudo_labels_import_them_too(tmp_path):
    (tmp_path / "imports_labels.py").write_text(READER.format(name="imports_labels"))
    (tmp_path / "c.yaml").write_text(
        "IMPORTS: [imports_labels]\nCLS: {SOURCE: dataset}\nDEVICE: cpu\nIMAGES: {READER: imports_labels}\n"
    )
    load_settings(tmp_path / "c.yaml")
    assert "imports_labels" in list_datasets()


@pytest.mark.parametrize(
    ("imports", "code", "message"),
    [
        (
            "[imports_nowhere]",
            "",
            "IMPORTS: there is no module 'imports_nowhere' along Python's path or in /",
        ),
        ("[imports_wrong.part]", "", "IMPORTS: .*imports_wrong"),
        (
            "[imports_wrong]",
            "import nothing_at_all",
            "ModuleNotFoundError in .*imports_wrong.py, line 1: .*nothing",
        ),
        ("[imports_wrong]", "\n\n1 / 0", "ZeroDivisionError in .*imports_wrong.py, line 3: division by zero"),
        ("[imports_wrong]", "def f(:", "SyntaxError in .*imports_wrong.py, line 1"),
        ("[imports_wrong]", "raise SystemExit(3)", "SystemExit in .*imports_wrong.py, line 1: 3"),
        ("[statistics]", "", "statistics.py is hidden by .*statistics.py, which Python finds first"),
        ("['a b']", "", "IMPORTS has 'a b', allowed: names of modules"),
        ("['.a']", "", "IMPORTS has '.a', allowed: names of modules"),
        ("imports_wrong", "", "IMPORTS is 'imports_wrong', allowed: a list"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_by_the_key(tmp_path, imports, code, message):
    sys.modules.pop("imports_wrong", None)
    (tmp_path / "imports_wrong.py").write_text(code)
    (tmp_path / "statistics.py").write_text("")
    (tmp_path / "c.yaml").write_text(f"IMPORTS: {imports}\n")
    with pytest.raises(InputError, match=message):
        load_cfg(tmp_path / "c.yaml")
