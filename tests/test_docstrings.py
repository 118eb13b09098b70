"""First lines of docstrings: there, and a plain English sentence rather than a riddle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("d2go_fbnetv5", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# A reader who sees one line, in an editor or a list, must learn what the thing is or does.
RIDDLE = re.compile(r"(Of|What|Which|Whether|How)\b|\W*\.\.\.|(The|An?) [^.:;,]*, as\b")


def unclear(source):
    """Return the names of definitions whose docstring's first line is a riddle, or that have none though public."""
    tree = ast.parse(source)
    defines = any(isinstance(node, DEFINITIONS) for node in tree.body)
    found = ["the module"] if defines and not ast.get_docstring(tree) else []
    public = {id(node) for node in tree.body if isinstance(node, DEFINITIONS) and node.name[0] != "_"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            text = ast.get_docstring(node)
            if (text is None and id(node) in public) or (text and RIDDLE.match(text)):
                found.append(getattr(node, "name", "the module"))
    return found


def test_first_lines_say_what_a_thing_is_or_does():
    assert len(FILES) > 150
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    found = {str(path.relative_to(ROOT)): unclear(text) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line", ["Of a class.", "What it gives.", "Whether it is.", "The text, as it is.", "... x 4 boxes."]
)
def test_a_riddle_is_found(line):
    assert unclear(f'"""A module."""\ndef _f():\n    """{line}"""') == ["_f"]
    assert unclear('"""A module."""\ndef f(): ...\nclass _C:\n    def method(self): ...') == ["f"]
