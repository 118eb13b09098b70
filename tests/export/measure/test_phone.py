import os
import stat
import subprocess

import pytest
from d2go_fbnetv5.tools.latency_table import main

from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.latency_table import BLOCKS, STAGE0, read_latency_table
from d2go_fbnetv5.export.measure import phone

ARGS = ["--family", "N", "--size", "96x96"]
RUNNER = """#!/bin/sh
# Says what ExecuTorch's runner says, of a time that is the length of the part's name, and counts its calls.
echo "I 00:00:00.1 executorch:executor_runner.cpp:465] Model file $2 is loaded."
echo "$2 $4 $6" >> calls.txt
echo "I 00:00:00.2 executorch:executor_runner.cpp:505] Model executed successfully $4 time(s) in ${#2}.5 ms."
echo "OutputX 0: tensor(sizes=[1, 16, 24, 24], [part 1, 2])"
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The folder for a phone, with empty programs and a runner that only talks."""
    monkeypatch.setattr(phone, "lower", lambda methods: b"")
    monkeypatch.setattr(phone, "require_executorch", lambda: None)
    assert main([*ARGS, "--parts", str(tmp_path / "parts"), str(tmp_path / "phone.csv")]) == 0
    runner = tmp_path / "parts" / "executor_runner"
    runner.write_text(RUNNER)
    runner.chmod(runner.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "parts"


def test_the_script_times_all_parts_in_turns_and_its_log_becomes_a_table(parts, tmp_path, capsys):
    assert {path.stem for path in parts.glob("*.pte")} == {*STAGE0, *BLOCKS}
    assert not (tmp_path / "phone.csv").exists()
    shell = ["sh", str(parts / "run.sh"), "./executor_runner", "3", "50"]
    log = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True).stdout
    calls = (parts / "calls.txt").read_text().splitlines()
    assert calls == [f"{name}.pte 50 1" for name in (*STAGE0, *BLOCKS)] * 3
    (tmp_path / "parts.log").write_text(log)
    assert main([*ARGS, "--log", str(tmp_path / "parts.log"), str(tmp_path / "phone.csv")]) == 0
    costs = read_latency_table(tmp_path / "phone.csv", build_family("N"), (96, 96))
    # stage0.path0.pte has 16 letters, block.path0.pte 15, and a program of a block four blocks.
    assert costs.stage0 == pytest.approx([16.5 / 50] * 4)
    assert costs.blocks == pytest.approx([15.5 / 50 / 4] * 4)
    assert "for SEARCH.COST.TABLE" in capsys.readouterr().out


def line(milliseconds, times=10):
    return f"I 00:00:01.0 executorch:x.cpp:1] Model executed successfully {times} time(s) in {milliseconds} ms.\n"


def test_the_median_of_the_rounds_counts(tmp_path):
    log = tmp_path / "parts.log"
    log.write_text(
        "".join(f"part {name}\r\n{line(ms)}" for ms in (30.0, 10.0, 900.0) for name in (*STAGE0, *BLOCKS))
    )
    costs = phone.read_parts(log)
    assert costs.stage0 == (3.0,) * 4 and costs.blocks == (0.75,) * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "says no time of stage0.path0, stage0.path1"),
        (f"part stage0.path0\n{line(1.0)}", "says no time of stage0.path1"),
        (f"part stage9.path0\n{line(1.0)}", "line 1: unknown part 'stage9.path0'"),
        (f"part stage0.path0\n{line(1.0, 0)}", "line 2: .* is no time"),
    ],
)
def test_a_log_that_does_not_say_all_is_named(tmp_path, capsys, text, message):
    log = tmp_path / "parts.log"
    log.write_text(text)
    with pytest.raises(ValueError, match=message):
        phone.read_parts(log)
    assert main([*ARGS, "--log", str(log), str(tmp_path / "phone.csv")]) == 2
    assert not os.path.exists(tmp_path / "phone.csv")
    assert capsys.readouterr().err.startswith(f"latency_table: {log}")


def test_a_log_that_is_not_there_is_named(tmp_path, capsys):
    assert main([*ARGS, "--log", str(tmp_path / "none.log"), str(tmp_path / "phone.csv")]) == 2
    assert "none.log" in capsys.readouterr().err
