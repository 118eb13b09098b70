from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import bind_options


def make(
    root: str | Path = "",
    name: str = "",
    size: int | tuple[int, int] = 1,
    count: int | None = None,
    rate: float = 0.5,
    switch: bool = False,
    names: Sequence[str] = (),
    folders: str | Path | Sequence[str | Path] = (),
    ratios: tuple[float, ...] = (1.0,),
    side: Literal["short", "long"] = "short",
    more: Mapping[str, Any] | None = None,
    anything=None,
    sizes=(1, 2),
):
    """What a reader of a user's may look like."""


def bind(**options):
    return bind_options("data set 'x'", make, options)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("name", "1.10", "1.10"),
        ("name", 2024, "2024"),
        ("root", "08", "08"),
        ("size", "1_04", 104),
        ("size", "(96, 128)", (96, 128)),
        ("size", [96, 128], (96, 128)),
        ("count", "null", None),
        ("count", None, None),
        ("count", "7", 7),
        ("rate", "1e-4", 1e-4),
        ("rate", 1, 1.0),
        ("switch", "on", True),
        ("names", "[a, 1.10]", ("a", "1.10")),
        ("names", [1, "b"], ("1", "b")),
        ("folders", "photos", "photos"),
        ("folders", ["a", "b"], ("a", "b")),
        ("ratios", [1, "2e0"], (1.0, 2.0)),
        ("side", "long", "long"),
        ("more", {"a": "1e-4", "b": "1", "c": ["x"]}, {"a": 1e-4, "b": "1", "c": ["x"]}),
        ("anything", "1e-4", 1e-4),
        ("anything", "1", "1"),
        ("anything", "no way", "no way"),
        ("sizes", ["3", 4], (3, 4)),
    ],
)
def test_an_option_is_what_its_annotation_or_default_says(option, value, expected):
    found = bind(**{option: value})[option]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("size", 2.5, "a whole number or a list"),
        ("size", "x", "a whole number or a list"),
        ("size", [1, 2, 3], "a list of 2 items"),
        ("size", True, "a whole number or a list"),
        ("count", "1.5", "a whole number"),
        ("rate", "nan", "a finite number"),
        ("rate", float("inf"), "a finite number"),
        ("rate", True, "a finite number"),
        ("switch", "maybe", "True or False"),
        ("switch", 1, "True or False"),
        ("name", True, "in quotes where it is a word such as yes"),
        ("name", None, "in quotes"),
        ("name", ["a"], "a text"),
        ("names", "ab", "a list"),
        ("names", ["a", True], "a list, each item a text"),
        ("side", "wide", "'short', 'long'"),
        ("more", [1], "a group of options"),
        ("root", "~nobody-at-all/x", "no user"),
    ],
)
def test_an_option_of_another_kind_is_refused_by_its_name(option, value, allowed):
    with pytest.raises(InputError, match=allowed) as error:
        bind(**{option: value})
    assert option in str(error.value) or "~" in str(value)


def test_home_is_expanded_in_options_that_are_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert bind(root="~/x", folders=["~/a", "b"], name="~/x") == {
        "root": "/home/me/x",
        "folders": ("/home/me/a", "b"),
        "name": "/home/me/x",
    }
    assert bind(name="~x", names=["~/x"])["name"] == "~x"
    assert bind(root=Path("~/x"))["root"] == "/home/me/x"


def test_unknown_missing_and_odd_names_of_options_are_told_with_those_there_are():
    def needs(channels, path: str, width: int = 3):
        pass

    for options, message in (
        ({"path": "a", "widht": 3}, "'x' has no option 'widht'; its options are .path: str, width: int = 3"),
        ({}, "missing a required argument: 'path'"),
        ({1: 2}, "'x' has no option 1;"),
        ({"path": "a", "channels": 3}, "'x' has no option 'channels'"),
    ):
        with pytest.raises(InputError, match=message):
            bind_options("'x'", needs, options, given=("channels",))


def test_a_function_that_takes_anything_gets_numbers_and_texts():
    def open_set(**options):
        pass

    assert bind_options("x", open_set, {"a": "1e-4", "b": "08", "c": None}) == {
        "a": 1e-4,
        "b": 8.0,
        "c": None,
    }
