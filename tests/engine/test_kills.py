"""Runs and labellings that are killed at any moment end as if they had not been.

KILLS=40 makes as many kills, KILLS_SEED=1 other ones.
"""

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.data import DigitScenes, write_multitask
from d2go_fbnetv5.engine.config import find_config
from d2go_fbnetv5.reports.history import read_history

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux"),
]

SCRIPT = Path(__file__).with_name("kills_run.py")
KILLS, SEED = int(os.environ.get("KILLS", 8)), int(os.environ.get("KILLS_SEED", 0))
SMALL = {
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "CROP": {"SIZE": [64, 64]}},
    "FBNETV5_DATA": {
        "DATASETS": {
            "digit_scenes_train": {"size": 64, "num_images": 64},
            "digit_scenes_val": {"size": 64, "num_images": 8},
        }
    },
    "DATALOADER": {"NUM_WORKERS": 1},
    "SOLVER": {
        "IMS_PER_BATCH": 8,
        "REFERENCE_WORLD_SIZE": 0,
        "MAX_ITER": 14,
        "STEPS": [9],
        "WARMUP_ITERS": 2,
        "CHECKPOINT_PERIOD": 4,
    },
    "TEST": {"EVAL_PERIOD": 6},
    "WRITER_PERIOD": 3,
}
SEARCH = {
    "MODEL": {"FBNETV5": {"NUM_STAGES": 2}},
    "SEARCH": {
        "SAMPLES_PER_RANK": 2,
        "ARCH_WARMUP_ITERS": 2,
        "COST": {"SIZE": [64, 64]},
        "EVAL": {"RANDOM_TOPOLOGIES": 1, "BN_ITERS": 1, "MAX_IMAGES": 8},
    },
}


@dataclass(frozen=True)
class Case:
    """What is killed.

    Attributes:
        configuration: that ships, "" for labels.
        processes: of the run.
        torchrun: it, not the command with --resume, starts a killed run again.
    """

    configuration: str
    processes: int = 1
    torchrun: bool = False


CASES = {
    "search": Case("search_digits_scratch.yaml"),
    "det": Case("det/det_digits.yaml"),
    "search 2": Case("search_digits_scratch.yaml", 2),
    "seg": Case("seg/seg_digits.yaml"),
    "labels": Case(""),
    "det 2": Case("det/det_digits.yaml", 2),
    "torchrun": Case("search_digits_scratch.yaml", 2, torchrun=True),
    "seg 2": Case("seg/seg_digits.yaml", 2),
}


@pytest.fixture(scope="module")
def tool():
    """The script's module, which children of this process run without importing anything again."""
    spec = importlib.util.spec_from_file_location("kills_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Builds the command's arguments for a case and a folder."""
    folder = tmp_path_factory.mktemp("cases")
    topology = Topology([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    outputs = {"det": ["path1"], "seg": ["path1", "path3"]}
    found = folder / "topologies.json"
    save_topologies(
        found, "N", 3, (64, 64), {t: {"topology": topology, "outputs": o} for t, o in outputs.items()}
    )
    scenes = str(write_multitask(DigitScenes("train", 64, 40, seed=3), folder / "scenes"))
    teacher = {
        "SOURCE": "teacher",
        "TEACHER": "planted_teachers:Truth",
        "OPTIONS": {"index": scenes, "scores": [0.5, 0.9, 0.2]},
    }
    labels = {
        "IMAGES": {"READER": "multitask", "index": scenes},
        "CHUNK_SIZE": 4,
        "DEVICE": "cpu",
    }

    def build(case, output):
        config = folder / f"{case.configuration.replace('/', '_') or 'labels.yaml'}"
        if not case.configuration:
            config.write_text(yaml.safe_dump(labels | {"DET": teacher, "SEG": teacher, "CLS": teacher}))
            return ["pseudo_label", "--config-file", str(config), "--output-dir", str(output)]
        model = {
            "MODEL": {"WEIGHTS": "", "FBNETV5": {"TOPOLOGY": str(found)}},
            "MODEL_EMA": {"ENABLED": True},
        }
        values = SMALL | (SEARCH if case.configuration.startswith("search") else model)
        config.write_text(yaml.safe_dump({"_BASE_": str(find_config(case.configuration)), **values}))
        several = [] if case.torchrun or case.processes == 1 else ["--num-processes", str(case.processes)]
        return ["train_net", "--config-file", str(config), "--output-dir", str(output), *several]

    return build


class Started:
    """A command in a process group of its own, with what it prints in a file."""

    def __init__(self, tool, case, arguments, log):
        self.log, self._process, self._status = log, None, None
        if case.processes == 1:
            self.pid = _fork(tool, arguments, log)
            return
        command = [sys.executable, str(SCRIPT), *arguments]
        if case.torchrun:
            launcher = [
                "--standalone",
                f"--nproc-per-node={case.processes}",
                "--max-restarts=3",
                "--monitor-interval=0.2",
            ]
            command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(SCRIPT), *arguments]
        with open(log, "ab") as out:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self.pid = self._process.pid

    def poll(self):
        """The exit status, None while it runs."""
        if self._process is not None:
            return self._process.poll()
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, seconds=240):
        until = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"it hangs: {self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return status

    def workers(self):
        """Ids of the processes that train: the launcher's children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, command in commands.items() if b"resource_tracker" not in command]


def _fork(tool, arguments, log):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        torch.set_num_threads(1)
        status = tool.main(arguments[0], arguments[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _begun(folder, case):
    return (folder / ("config.yaml" if case.configuration else "job.json")).exists()


@pytest.fixture(scope="module")
def whole(tool, arguments, tmp_path_factory):
    """The folder of an uninterrupted run of a case, and how many seconds it took from its first file on."""
    done = {}

    def run(name):
        if name not in done:
            case, folder = CASES[name], tmp_path_factory.mktemp("whole") / "run"
            started = Started(tool, case, arguments(case, folder), folder.parent / "log")
            while not _begun(folder, case) and started.poll() is None:
                time.sleep(0.02)
            since = time.monotonic()
            assert started.wait() == 0, started.log.read_text()[-3000:]
            done[name] = folder, time.monotonic() - since
        return done[name]

    return run


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_that_goes_on_ends_as_one_that_was_not(tool, arguments, whole, tmp_path, number):
    draw = random.Random(f"{SEED}:{number}")
    name = list(CASES)[number % len(CASES)]
    case, folder = CASES[name], tmp_path / "run"
    expected, seconds = whole(name)
    args = arguments(case, folder)
    started = Started(tool, case, args + (["--resume"] if case.torchrun else []), tmp_path / "log")
    while not _begun(folder, case):
        assert started.poll() is None, started.log.read_text()[-3000:]
        time.sleep(0.01)
    time.sleep(draw.random() * seconds)
    target = draw.choice(["one", "launcher", "all"]) if case.processes > 1 else "all"
    _kill(started, "one" if case.torchrun else target, draw)
    status = started.wait()
    if case.torchrun:
        assert status == 0, started.log.read_text()[-3000:]
    elif status != 0:  # else it had ended before
        go_on = args + (["--resume"] if case.configuration else [])
        assert Started(tool, case, go_on, tmp_path / "log").wait() == 0, started.log.read_text()[-3000:]
    assert_same(case, expected, folder)


def _kill(started, target, draw):
    if target == "one" and (workers := started.workers()):
        _signal(draw.choice(workers))
    elif target == "launcher":
        _signal(started.pid)
    elif target == "all":
        for pid in [*started.workers(), started.pid]:
            _signal(pid)


def _signal(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def assert_same(case, expected, folder):
    """Every file of labels, topologies and descriptions byte by byte, checkpoints but for times, histories likewise."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert not [path for path in files if path.suffix == ".tmp"]
    if not case.configuration:
        assert files == {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
        for path in files:
            assert (folder / path).read_bytes() == (expected / path).read_bytes(), path
        return
    for name in ("topologies.json", "network.json"):
        assert (folder / name).exists() == (expected / name).exists()
        if (folder / name).exists():
            assert _bytes(folder / name, folder) == _bytes(expected / name, expected), name
    ranks = [f"of_rank{rank}.pth" for rank in range(case.processes)]
    for name in ("model_final.pth", *ranks):
        one, other = (torch.load(f / name, weights_only=True) for f in (expected, folder))
        _assert_equal(one, other, name)
    first = torch.load(folder / ranks[0], weights_only=True)
    for name in ranks[1:]:
        _assert_equal(_averaged(first), _averaged(torch.load(folder / name, weights_only=True)), name)
    timeless = [
        [{key: value for key, value in record.items() if "time" not in key} for record in read_history(f)]
        for f in (expected, folder)
    ]
    assert timeless[0] == timeless[1]


def _averaged(state):
    """A search's generators and its window of losses are each process' own."""
    return {key: value for key, value in state.items() if key.startswith(("supernet.", "tasks.", "module."))}


def _bytes(path, folder):
    return path.read_bytes().replace(str(folder).encode(), b"RUN")


def _assert_equal(one, other, where):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {"stopwatch"}:
            _assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert (
            torch.equal(one, other)
            or (one.isnan() == other.isnan()).all()
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        ), where
    else:
        assert one == other, where
