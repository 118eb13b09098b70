import argparse

import pytest

from d2go_fbnetv5.utils.arguments import ToolParser, check_least, parse_size
from d2go_fbnetv5.utils.errors import InputError


def parser():
    parser = ToolParser("export", "First line.\nSecond line.", epilog="The end.")
    parser.add_argument("--run")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("paths", nargs="*", default=["~/default"])
    return parser


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/x", "/home/me/x"), ("~", "~"), ("~other/x", "~other/x"), ("a/~/x", "a/~/x"), ("./~/x", "./~/x")],
)
def test_a_path_in_the_users_folder_is_one_however_it_is_written(monkeypatch, given, expected):
    monkeypatch.setenv("HOME", "/home/me")
    for argv in ([f"--run={given}", given], ["--run", given, given]):
        args = parser().parse_args(argv)
        assert (args.run, args.paths, args.count) == (expected, [expected], 1)


def test_an_empty_argument_is_refused_by_its_name(capsys):
    for argv, name in ((["--run="], "--run"), ([""], "paths")):
        with pytest.raises(SystemExit) as end:
            parser().parse_args(argv)
        assert end.value.code == 2
        assert f"error: argument {name}: is empty\n" in capsys.readouterr().err


def test_the_description_keeps_its_lines():
    text = parser().format_help()
    assert text.startswith("usage: d2go_fbnetv5.export ") and "First line.\nSecond line.\n" in text


def test_a_number_that_is_too_small_is_named_by_its_flag():
    args = argparse.Namespace(max_images=-1, rounds=1)
    check_least(args, rounds=1)
    with pytest.raises(InputError, match=r"^--max-images -1: allowed is 0 or more$"):
        check_least(args, rounds=1, max_images=0)


def test_a_size_is_height_and_width():
    assert parse_size("224x320") == (224, 320)
    for text in ("224", "0x8", "1x2x3", "x", "8x²", "99999x8"):
        with pytest.raises(InputError, match="^--sizes .*: expected HEIGHTxWIDTH"):
            parse_size(text, "--sizes")
