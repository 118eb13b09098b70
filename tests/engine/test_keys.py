"""Each row of the tables: what it has to say, and that the package reads the key."""

import ast
from pathlib import Path

import pytest
from d2go_fbnetv5.tools.configuration import page
from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.keys import KEYS
from d2go_fbnetv5.pseudo_labels.settings import FIELDS, SETTINGS
from d2go_fbnetv5.utils.rules import SWITCH, Key, add_keys, between, check

ROOT = Path(__file__).parents[2]
MUST_BE_SET = {"INPUT.FORMAT", "DATASETS.TRAIN", "DATASETS.TEST"}
FOR_OTHER_TRAINERS = {"VERSION", "INPUT.CROP.TYPE"}  # ours takes a single value of each


def names_read(tree):
    """Dotted names, such as "SOLVER.AMP.ENABLED", of the attributes that a file reads; ``solver = cfg.SOLVER`` and the
    like are followed."""
    known, found = {}, set()

    def dotted(node):
        if isinstance(node, ast.Name):
            return known.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return (
                f"{dotted(node.value)}.{node.attr}".strip(".") if node.attr.isupper() else dotted(node.value)
            )
        return ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (
                    zip(target.elts, node.value.elts, strict=True) if both_tuples(target, node.value) else ()
                )
                for name, value in [(target, node.value), *pairs]:
                    if (
                        isinstance(name, ast.Name)
                        and isinstance(value, ast.Attribute)
                        and value.attr.isupper()
                    ):
                        known[name.id] = dotted(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.isupper():
            found.add(dotted(node))
    return found


def both_tuples(*nodes):
    return all(isinstance(node, ast.Tuple) for node in nodes)


def test_reads_are_found_through_short_names():
    source = (
        "def f(cfg):\n  a, b = cfg.SOLVER, cfg.SEARCH.COST\n  return a.AMP.ENABLED, b.SIZE, self.cfg.TEST.X"
    )
    assert {"SOLVER.AMP.ENABLED", "SEARCH.COST.SIZE", "TEST.X"} <= names_read(ast.parse(source))


def test_every_row_is_read_somewhere():
    files = [path for folder in ("d2go_fbnetv5", "tools") for path in (ROOT / folder).rglob("*.py")]
    read = set().union(*(names_read(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    of_tasks = {f"{task}.{name}" for task in FIELDS for name in read}  # for each by settings[task]
    assert len(KEYS) > 100 and KEYS.keys() - read == FOR_OTHER_TRAINERS
    assert SETTINGS.keys() - read - of_tasks == set()


@pytest.mark.parametrize("rows", [KEYS, SETTINGS])
def test_every_row_has_a_text_a_type_and_a_rule(rows):
    for name, row in rows.items():
        assert name == row.name and row.text[0].isupper() and row.text.endswith("."), name
        assert type(row.default) in (bool, int, float, str, list, tuple, dict), name
        assert (row.rule is SWITCH) == isinstance(row.default, bool), name
        assert str(row.rule) and "|" not in f"{row.rule}{row.text}", name
    assert {name for name, row in rows.items() if not row.rule.holds(row.default)} <= MUST_BE_SET


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == f"{page()}\n"


def test_a_new_row_has_its_default_in_every_configuration_that_lacks_it():
    rows = [Key("A.B.C", 3, between(1, 4), "A number."), Key("A.D", [], between(1), "A list.")]
    cfg = add_keys(CfgNode({"A": {"B": {"X": 1}}}), rows)
    assert cfg == {"A": {"B": {"X": 1, "C": 3}, "D": []}}
    cfg.A.B.C = 2
    cfg.A.D.append(1)
    assert add_keys(cfg, rows) is cfg and cfg.A.B.C == 2
    assert add_keys(CfgNode(), rows).A.D == []


@pytest.mark.parametrize(
    ("rule", "says", "inside", "outside"),
    [
        (between(1), "1 or more", [1, 10**9], [0]),
        (between(0, 0.5), "0 or more and at most 0.5", [0, 0.5], [-1, 0.6]),
        (between(over=0, below=1), "more than 0 and below 1", [0.5], [0, 1]),
        (between(over=2, most=10**7), "more than 2 and at most 10000000", [3, 10**7], [2, 10**7 + 1]),
    ],
)
def test_a_range_says_which_of_its_ends_are_allowed(rule, says, inside, outside):
    assert str(rule) == says
    assert [rule.holds(value) for value in inside + outside] == [True] * len(inside) + [False] * len(outside)
    with pytest.raises(ValueError, match=f"^A is {outside[0]}, allowed: {says}$"):
        check(CfgNode({"A": outside[0]}), "A", rule)
