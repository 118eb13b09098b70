"""Teachers that users write, and what files ask Python to run."""

import pickle
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from d2go_fbnetv5.pseudo_labels import build_teacher
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.watching import watched

MODULES = {
    "syntax_error": ("def build(:\n    pass\n", "SyntaxError: invalid syntax .*syntax_error.py, line 1"),
    "import_missing": (
        "import no_such_module\n",
        "ModuleNotFoundError: No module named 'no_such_module'.*py, line 1",
    ),
    "raises": ("x = 1\ny = 1 / 0\n", r"ZeroDivisionError: division by zero \(.*raises.py, line 2\)"),
    "exits": ("import sys\nsys.exit(0)\n", r"SystemExit: 0 \(.*exits.py, line 2\)"),
    "no_utf8": (b"x = '\xff'\n", "SyntaxError: .*utf-8"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Writes a module into the current folder, which is left again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_bytes(text if isinstance(text, bytes) else text.encode())

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_cannot_be_imported_is_one_sentence_with_its_line(here, kind):
    text, message = MODULES[kind]
    here(f"theirs_{kind}", text)
    with pytest.raises(InputError, match=f"module 'theirs_{kind}' cannot be imported: {message}"):
        build_teacher(f"theirs_{kind}:build")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('weights')", r"KeyError: 'weights' \(.*theirs.py, line 2\)"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(.*theirs.py, line 2\)"),
        ("import torch; torch.zeros(2) @ torch.zeros(3)", r"RuntimeError: .*theirs.py, line 2\)"),
        ("return None", "class_names is None, it must be a tuple of strings"),
        ("assert False", r"AssertionError: AssertionError \(.*theirs.py, line 2\)"),
    ],
)
def test_a_function_that_raises_is_one_sentence_with_its_line(here, body, message):
    here("theirs", f"def build(device):\n    {body}\n")
    with pytest.raises(InputError, match=message):
        build_teacher("theirs:build")


@pytest.mark.parametrize(
    "name", ["builtins:dict", "math:hypot", ":", "a:", ".x:y", "os:no_such", "os.path:sep"]
)
def test_what_is_no_teachers_function_is_one_sentence(name):
    with pytest.raises(InputError, match="teacher"):
        build_teacher(name)


def test_imports_register_readers_and_teachers(here, label, tmp_path):
    here(
        "mine_imported",
        """
from d2go_fbnetv5.data.image_folders import ImageFolders
from d2go_fbnetv5.data import register_dataset
from d2go_fbnetv5.pseudo_labels import Teacher, register_teacher

register_dataset("mine_imported")(ImageFolders)

@register_teacher("mine_imported")
class Mine(Teacher):
    class_names = ("a",)

    def __init__(self, device):
        pass

    def __call__(self, images):
        return [{"class_scores": [1.0]} for _ in images]
""",
    )
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    images = {"READER": "mine_imported", "folders": str(tmp_path / "photos")}
    group = {"SOURCE": "teacher", "TEACHER": "mine_imported"}
    assert label({"IMPORTS": ["mine_imported"], "IMAGES": images, "CLS": group}) == 0


LEAVES = """
import os
from d2go_fbnetv5.pseudo_labels import Teacher

class Leaves(Teacher):
    class_names = ("a",)

    def __call__(self, images):
        os._exit(0)

def build(device):
    return Leaves()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tools are not watched")
@pytest.mark.parametrize("module", [LEAVES, "import os; os._exit(0)"], ids=["labels", "is imported"])
def test_code_that_leaves_without_a_word_does_not_look_like_an_end(
    here, label, tmp_path, monkeypatch, capfd, module
):
    here("leaves", module)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    images = {"READER": "image_folders", "folders": str(tmp_path / "photos")}
    group = {"SOURCE": "teacher", "TEACHER": "leaves:build"}
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # they are this process' to hear
    run = watched("tool", lambda: label({"IMPORTS": ["leaves"], "IMAGES": images, "CLS": group}), "again")
    assert run == 2
    assert "tool: its process ended with status 0 by code that it ran, before" in capfd.readouterr().err
    assert not (tmp_path / "out" / "index").exists()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_weights_in_torchs_cache_run_no_code(tmp_path, monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    torch.save({"x": Payload(tmp_path / "ran")}, file)
    for _ in range(2):
        with pytest.raises(InputError, match="holds more than tensors") as caught:
            build_teacher("torchvision", model="squeezenet1_1")
        assert not (tmp_path / "ran").exists() and "weights_only" not in str(caught.value)
        file.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
