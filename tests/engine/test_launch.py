import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2go_fbnetv5.engine.launch import launch, total_processes
from d2go_fbnetv5.utils.errors import LostProcessError

SCRIPT = Path(__file__).with_name("stub_run.py")


def start(args, command=(sys.executable,), **env):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(
        [*command, str(SCRIPT), *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_processes": 0}, "--num-processes is 0, allowed: 1 or more"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank is 2, allowed: 0 to 1"),
        ({"num_machines": 2}, "--dist-url is 'auto'"),
        (
            {"num_processes": 2, "dist_url": "host:port"},
            "--dist-url is 'host:port', allowed: auto, tcp://host:port",
        ),
        ({"num_processes": 2, "dist_url": "tcp://host:many"}, "--dist-url"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message.split(",")[0]):
        launch(print, (), **options)


def test_one_process_is_this_one():
    seen = []
    launch(seen.append, (os.getpid(),))
    assert seen == [os.getpid()]


def test_torchrun_is_recognised_by_its_environment(monkeypatch):
    assert total_processes(2, 3) == 6
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert total_processes() == 4
    with pytest.raises(ValueError, match="torchrun"):
        launch(print, (), num_processes=2)


@pytest.mark.slow
def test_two_processes_stop_at_a_bad_loss_with_one_sentence(stub_args, tmp_path):
    process = start(stub_args("run", "--num-processes", "2"), STUB_NAN="4")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    errors = [line for line in stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert len(errors) == 1
    assert errors[0].startswith("train_net: training stopped at iteration 4: loss_cls is nan")
    assert "t4" in errors[0]
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.slow
def test_processes_agree_on_statistics_and_see_each_image_once():
    script = SCRIPT.with_name("ranks_run.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_torchrun(stub_args, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(stub_args("run"), torchrun)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.slow
def test_two_machines(stub_args, tmp_path):
    """Two launchers on this one stand for two machines that share a folder."""
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    common = ("--num-machines", "2", "--dist-url", f"tcp://localhost:{port}")
    launchers = [start(stub_args("run", *common, "--machine-rank", rank)) for rank in (0, 1)]
    for launcher in launchers:
        _, stderr = launcher.communicate(timeout=180)
        assert launcher.returncode == 0, stderr
    assert (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_launcher(stub_args, tmp_path):
    launcher = start(
        stub_args("run", "--num-processes", "2", "SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_KEEP", "1")
    )
    metrics = tmp_path / "run" / "metrics.json"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    launcher.kill()
    launcher.wait()
    time.sleep(5)
    size = metrics.stat().st_size
    time.sleep(2)
    assert size > 0
    assert metrics.stat().st_size == size


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, message",
    [
        (signal.SIGKILL, "process 1 was killed by SIGKILL, as the system does when memory runs out"),
        (signal.SIGSTOP, "process 0 waited 0.2 minutes in vain: process 1 does not answer ("),
    ],
)
def test_a_process_that_is_gone_or_hangs_is_named_and_nothing_is_left(stub_args, tmp_path, number, message):
    launcher = start(
        stub_args("run", "--num-processes", 2, "SOLVER.MAX_ITER", 1000000, "DISTRIBUTED.TIMEOUT_MINUTES", 0.2)
    )
    metrics = tmp_path / "run" / "metrics.json"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 6000) and time.monotonic() < deadline:
        time.sleep(0.2)
    workers = children(launcher.pid)
    os.kill(workers[1], number)
    _, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    (line,) = (line for line in stderr.splitlines() if not line.startswith(("INFO", "WARNING")))
    assert line.startswith(f"train_net: {message}")
    assert line.endswith("; go on with --resume")
    assert not any(Path("/proc", str(pid)).exists() for pid in workers)


def children(launcher):
    """The ids of the processes of a run in the order of their ranks."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and "spawn_main" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return sorted(found)


@pytest.mark.slow
def test_a_process_that_leaves_without_a_word_has_not_done_its_work():
    with pytest.raises(LostProcessError, match=r"process \d ended with status 0 before it was done"):
        launch(os._exit, (0,), num_processes=2)


@pytest.mark.slow
def test_a_bug_in_a_process_keeps_its_traceback(stub_args):
    process = start(stub_args("run", "--num-processes", 2), STUB_BUG="4:1")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.count("KeyError: 'a bug'") == 1
    assert "RuntimeError: process 1 failed" in stderr
