"""How a tool ends: by its status, or by a sentence about its input, its output or its process."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from d2go_fbnetv5.tools.visualize import main as visualize
from rich.console import Console

from d2go_fbnetv5.engine.log import log_to_file
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.watching import watched

PRINTED = {
    "a line": lambda: print("a line"),
    "more than a buffer": lambda: print("a line\n" * 100000),
    "rich": lambda: Console().print("a line"),
}


@pytest.fixture(params=["full", "closed", "pipe"])
def bad_stdout(request):
    """A stdout that nothing can be written to, and the system's word on it."""
    if request.param == "closed":
        yield None, "Bad file descriptor"
        return
    if request.param == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        file, word = os.fdopen(writer, "w"), "Broken pipe"
    elif Path("/dev/full").exists():
        file, word = open("/dev/full", "w"), "No space left on device"  # noqa: SIM115 (closed below)
    else:
        pytest.skip("needs a device that is always full")
    yield file, word
    file.close()  # raises if what could not be written is tried again


@pytest.mark.parametrize("what", PRINTED)
def test_stdout_that_cannot_be_written_is_named(bad_stdout, what, capsys, monkeypatch):
    file, word = bad_stdout
    monkeypatch.setattr(sys, "stdout", file)
    assert run_tool("tool", PRINTED[what]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tool: [Errno") and error.endswith(f"{word}: 'stdout'\n")
    assert sys.stdout is file


def test_a_runs_log_ends_with_its_tool(tmp_path, capsys):
    logger = logging.getLogger("d2go_fbnetv5")

    def run(text):
        log_to_file(tmp_path)
        raise InputError(text)

    assert run_tool("tool", lambda: run("one")) == 2
    logger.warning("two")
    written = (tmp_path / "log.txt").read_text()
    assert "tool ended here" in written and "InputError: one" in written and "two" not in written
    assert capsys.readouterr().err.startswith("tool: one\n")


def test_a_tool_without_stdout_says_so(bad_stdout, capsys, monkeypatch):
    file, word = bad_stdout
    monkeypatch.setattr(sys, "stdout", file)
    assert visualize(["--named", "unet"]) == 2
    assert f"{word}: 'stdout'" in capsys.readouterr().err


def test_help_without_stdout_says_so(bad_stdout, capsys, monkeypatch):
    file, word = bad_stdout
    monkeypatch.setattr(sys, "stdout", file)
    with pytest.raises(SystemExit) as end:
        visualize(["--help"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("visualize: [Errno") and error.endswith(f"{word}: 'stdout'\n")


def test_what_prints_nothing_needs_no_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_tool("tool", lambda: None) == 0


def test_an_exit_by_code_that_a_tool_runs_is_no_end(capsys):
    assert run_tool("tool", lambda: sys.exit(0)) == 1
    assert "SystemExit: 0" in capsys.readouterr().err


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tools are not watched")


@linux
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda: os._exit(0), "ended with status 0 by code that it ran"),
        (lambda: os._exit(7), "ended with status 7 by code that it ran"),
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "was killed by SIGKILL, as the system does when memory",
        ),
    ],
)
def test_a_process_that_is_gone_before_its_work_is_done_is_told(how, message, capfd, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # they are this process' to hear
    assert watched("tool", how, "the same command goes on") == 2
    error = capfd.readouterr().err
    assert error.startswith(f"tool: its process {message}")
    assert error.endswith("before its work was done; the same command goes on\n")


WATCHED = """
import os, signal, sys
from d2go_fbnetv5.utils.watching import watched
def end():
    if sys.argv[1] == "raise":
        raise SystemExit(5)
    if sys.argv[1] == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        print(os.getpid(), flush=True)
        while True:
            signal.pause()
    return int(sys.argv[1])
sys.exit(watched("tool", end, "it goes on"))
"""


@linux
@pytest.mark.parametrize(("how", "status"), [("0", 0), ("3", 3), ("raise", 5)])
def test_a_watched_tool_ends_as_any_other(how, status):
    done = subprocess.run([sys.executable, "-c", WATCHED, how], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, b"")


@linux
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_ends_a_watched_tool_ends_its_process(number, status):
    tool = subprocess.Popen([sys.executable, "-c", WATCHED, "wait"], stdout=subprocess.PIPE)
    child = Path("/proc", tool.stdout.readline().decode().strip())
    tool.send_signal(number)
    assert tool.wait(60) == status
    assert tool.stdout.read() == b""  # which ends when nobody can write to it any more
    tool.stdout.close()
    # A process closes its files a moment before it is gone.
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


@linux
def test_a_signal_that_comes_at_once_reaches_the_tool():
    """Also where this process has not come to listening yet, as on a busy machine."""
    late = (
        "import os, time\nfork = os.fork\nos.fork = lambda: (child := fork(), child and time.sleep(1))[0]\n"
    )
    tool = subprocess.Popen([sys.executable, "-c", late + WATCHED, "wait"], stdout=subprocess.PIPE)
    tool.stdout.readline()
    tool.send_signal(signal.SIGTERM)
    assert tool.wait(60) == 143
    tool.stdout.close()


def _runs(process):
    try:
        return "(zombie)" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
