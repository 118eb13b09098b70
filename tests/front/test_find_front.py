import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from d2go_fbnetv5.tools.front import main

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare
from d2go_fbnetv5.front.run import find_front

FILES = ("front.html", "front.json", "front.png", "front.svg", "evaluations.json")
ASKED = {"tasks": ["seg", "cls"], "costs": ["flops", "params"], "evaluations": 12, "population": 6}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of one step on the supernet that ships."""
    folder = tmp_path_factory.mktemp("search") / "run"
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "4", "SEARCH.SAMPLES_PER_RANK", "2"]
    opts += [
        "SEARCH.EVAL.MAX_IMAGES",
        "4",
        "SEARCH.EVAL.BN_ITERS",
        "1",
        "OUTPUT_DIR",
        str(folder),
        "SEED",
        "1",
    ]
    torch.manual_seed(0)
    run = Run(prepare(load_cfg("configs/search_digits.yaml", opts), 1))
    run.train()
    run.close()
    return folder


@pytest.fixture
def run(searched, tmp_path):
    shutil.copytree(searched, tmp_path / "run")
    return tmp_path / "run"


def written(run):
    return {name: (run / "front" / name).read_bytes() for name in FILES}


@pytest.mark.slow
def test_a_front_that_was_stopped_ends_with_the_same_bytes(run, searched, tmp_path):
    shares = []
    path = find_front(run, **ASKED, progress=shares.append)
    assert shares == [0.5, 1.0]
    content = json.loads(path.read_text())
    assert content["costs"] == ["flops", "params"] and list(content["tasks"]) == ["seg", "cls"]
    flops = block_costs("N", (96, 96))
    for task in content["tasks"].values():
        assert task["evaluations"] == 12 and len(task["random"]) == 16
        points = [(p["loss"], *p["costs"].values()) for p in task["front"]]
        assert not any(
            a != b and all(x <= y for x, y in zip(a, b, strict=True)) for a in points for b in points
        )
        for point in task["front"]:
            network = Topology.from_dict(point["topology"])
            assert point["costs"]["flops"] == flops.network(network, task["outputs"])
    page = (run / "front" / "front.html").read_text()
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")

    other = tmp_path / "other"
    shutil.copytree(searched, other)

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_front(other, **ASKED, progress=stop)
    assert not (other / "front" / "front.json").exists()
    find_front(other, **ASKED)
    assert written(other) == written(run)


@pytest.mark.slow
def test_several_processes_find_the_same_bytes_and_take_over_from_one(searched, tmp_path, capfd):
    asked = ["--tasks", "det", "cls", "--evaluations", "12", "--population", "4"]
    runs = [tmp_path / name for name in ("one", "three", "both")]
    for run in runs:
        shutil.copytree(searched, run)
    assert main([str(runs[0]), *asked]) == 0
    assert main([str(runs[1]), *asked, "--num-processes", "3"]) == 0

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_front(runs[2], ["det", "cls"], evaluations=12, population=4, progress=stop)
    assert main([str(runs[2]), *asked, "--num-processes", "2"]) == 0
    assert written(runs[0]) == written(runs[1]) == written(runs[2])
    assert capfd.readouterr().out.count("Wrote ") == 3


def kill_at(run, moment, arguments):
    """Start a front and kill it as soon as ``moment`` holds; return whether it was still at work."""
    command = [sys.executable, "-m", "d2go_fbnetv5.tools.front", str(run), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 300
        while process.poll() is None and not moment():
            assert time.monotonic() < until
            time.sleep(0.002)
        process.kill()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    return process.returncode != 0


@pytest.mark.slow
def test_a_front_that_is_killed_at_ten_moments_ends_with_the_same_bytes(searched, tmp_path):
    """Before anything is there, amid each generation, and between the files of the report."""
    asked = ["--tasks", "cls", "seg", "--evaluations", "28", "--population", "4", "--cost", "flops", "params"]
    runs = [tmp_path / name for name in ("whole", "killed")]
    for run in runs:
        shutil.copytree(searched, run)
    assert main([str(runs[0]), *asked]) == 0
    folder = runs[1] / "front"

    def judged():
        path = folder / "evaluations.json"
        return sum(map(len, json.loads(path.read_text())["losses"].values())) if path.exists() else 0

    moments = [
        lambda: (runs[1] / ".lock").exists(),
        lambda: folder.exists(),
        *(lambda least=least: judged() >= least for least in (8, 16, 24, 32, 40, 48)),
        lambda: (folder / "front.svg").exists(),
        lambda: (folder / "front.html").exists(),
    ]
    killed = [kill_at(runs[1], moment, asked) for moment in moments]
    assert sum(killed) >= 9  # the last file may be there before the signal is
    assert main([str(runs[1]), *asked]) == 0
    assert written(runs[1]) == written(runs[0])
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "pose"], "task 'pose': {run} has cls, det, seg"),
        (["--cost", "joules"], "cost 'joules': allowed are flops, params, and files of latency tables"),
        (["--evaluations", "3"], "--evaluations 3: allowed is 40 or more"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(run, arguments, sentence, capsys):
    assert main([str(run), *arguments]) == 2
    assert sentence.format(run=run) in capsys.readouterr().err


def test_figures_of_other_weights_are_not_taken_for_these(run, capsys):
    (run / "front").mkdir()
    (run / "front" / "evaluations.json").write_text('{"losses": {}, "family": "A"}')
    assert main([str(run)]) == 2
    assert "evaluations.json has figures of other networks (family A, now N)" in capsys.readouterr().err
    (run / "front" / "evaluations.json").write_text("[]")
    assert main([str(run)]) == 2
    assert "evaluations.json is damaged: remove it to begin anew" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.strip()
    assert error == f"front: {tmp_path / 'none'} is no run: it has no config.yaml"
