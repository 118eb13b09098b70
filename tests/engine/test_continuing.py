"""What a run was, and what --resume and --eval-only may make of it."""

import subprocess
import sys

import pytest
import torch
import yaml

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.continuing import check_continued
from d2go_fbnetv5.engine.validate import scale_to_world_size as scale
from d2go_fbnetv5.reports.history import read_history
from d2go_fbnetv5.utils.errors import InputError


def files(folder):
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".yaml", ".json", ".pth")
    }


def refused(capsys, stub, args, *words):
    """The command ends with one sentence that has these words."""
    capsys.readouterr()
    assert stub.main(args) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in message for word in words), message


def test_what_a_run_is_cannot_be_changed_and_nothing_is_rewritten(stub, stub_args, tmp_path, capsys):
    assert stub.main(stub_args("run")) == 0
    before = files(tmp_path / "run")
    for key, value, had in (
        ("SOLVER.OPTIMIZER", "adamw", "'sgd'"),
        ("MODEL_EMA.ENABLED", "False", "True"),
        ("SEED", "4", "3"),
        ("MODEL.PIXEL_STD", "[60.0, 50.0, 50.0]", "[50.0, 50.0, 50.0]"),
        ("SOLVER.LR_MULTIPLIER_OVERWRITE", "[{'fc': 2.0}]", "[]"),
        ("SOLVER.AMP.ENABLED", "True", "False"),
        ("SEARCH.TASKS", "['cls']", "['cls', 'det', 'seg']"),
        ("MODEL.WEIGHTS", "other.pth", "''"),
    ):
        args = stub_args("run", "SOLVER.MAX_ITER", 14, "--resume", key, value)
        refused(capsys, stub, args, key, had, "--resume")
    for key, value in (("MODEL_EMA.ENABLED", "False"), ("MODEL.WEIGHTS", "other.pth")):
        refused(capsys, stub, stub_args("run", "--eval-only", key, value), key, "--eval-only")
    assert files(tmp_path / "run") == before


def test_what_may_change_takes_effect_as_a_whole(stub, stub_args, tmp_path, caplog):
    """The changed values hold from the first new step on: the end is that of a run by hand from the checkpoint."""
    more = ("SOLVER.MAX_ITER", 13)
    changed = ("SOLVER.MOMENTUM", 0.5, "SOLVER.WEIGHT_DECAY", 0.3, "SOLVER.BASE_LR", 0.02, "WRITER_PERIOD", 2)
    assert stub.main(stub_args("run")) == 0
    before = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert stub.main(stub_args("run", *more, *changed, "--resume")) == 0
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    group = next(g for g in state["optimizer"]["param_groups"] if g["name"] == "weights")
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.3)
    assert abs(group["lr"] - 0.02 * 0.1) < 1e-12  # after STEPS [8]
    momenta, was = (s["optimizer"]["state"][group["params"][0]]["momentum_buffer"] for s in (state, before))
    # buffer = 0.5 buffer + gradient + 0.3 weight; weight -= lr buffer
    weight = before["model"]["fc.weight"]
    assert torch.allclose(state["model"]["fc.weight"], weight - group["lr"] * momenta, atol=1e-7)
    gradient = momenta - 0.5 * was - 0.3 * weight
    assert 0 < gradient.abs().max() < 1
    assert "SOLVER.WEIGHT_DECAY is 0.3 now" in caplog.text
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["SOLVER"]["WEIGHT_DECAY"] == 0.3


def test_an_evaluation_leaves_the_run_as_it_is_and_says_what_differs(stub, stub_args, tmp_path, caplog):
    assert stub.main(stub_args("run")) == 0
    before = files(tmp_path / "run")
    own = read_history(tmp_path / "run")
    assert stub.main(stub_args("run", "--eval-only")) == 0
    assert read_history(tmp_path / "run") == own
    caplog.clear()
    values = ("INPUT.MIN_SIZE_TEST", 16, "SOLVER.OPTIMIZER", "adamw", "SOLVER.MAX_ITER", 20, "SEED", 9)
    assert stub.main(stub_args("run", "--eval-only", *values)) == 0
    assert "INPUT.MIN_SIZE_TEST is 16 now" in caplog.text
    *history, last = read_history(tmp_path / "run")
    assert history == own
    assert last["changed"]["INPUT.MIN_SIZE_TEST"] == 16 and "eval_only/top1" in last
    after = files(tmp_path / "run")
    assert all(after[name] == before[name] for name in before if not name.startswith(("metrics", "ema_of")))


def test_other_classes_are_refused_and_named(stub, stub_args, tmp_path, capsys, monkeypatch):
    assert stub.main(stub_args("run")) == 0
    before = files(tmp_path / "run")
    monkeypatch.setattr(stub.StubSet, "info", stub.DatasetInfo(class_names=("dark", "zebra")))
    for option in ("--eval-only", "--resume"):
        args = stub_args("run", option, "SOLVER.MAX_ITER", 13)
        refused(capsys, stub, args, "stub_set", "class_names", "'zebra'", "'bright'")
    monkeypatch.setattr(stub.StubSet, "info", stub.DatasetInfo(class_names=("dark", "bright", "red")))
    refused(capsys, stub, stub_args("run", "--eval-only"), "class_names", "3 and 2", "'red'", "missing")
    assert files(tmp_path / "run") == before


def test_other_numbers_of_processes(stub, stub_args, tmp_path, monkeypatch, capsys):
    """Where the configuration is scaled to them, iterations are not those that were counted."""
    scaled = ("SOLVER.REFERENCE_WORLD_SIZE", 1)
    assert stub.main(stub_args("scaled", *scaled)) == 0
    monkeypatch.setattr(
        sys.modules["d2go_fbnetv5.engine.train"], "scale_to_world_size", lambda cfg, _: scale(cfg, 2)
    )
    refused(capsys, stub, stub_args("scaled", *scaled, "--resume"), "counts its iterations for 1 process;")
    assert stub.main(stub_args("scaled", *scaled, "--eval-only")) == 0


def test_a_head_that_a_search_does_not_have_is_no_part_of_it(tmp_path):
    """A recipe that came to know of one more task's head goes on with the searches that it began without it."""

    def search(*opts):
        return load_cfg(
            "search_digits.yaml", ["OUTPUT_DIR", str(tmp_path), "SEARCH.TASKS", "[cls,seg]", *opts]
        )

    (tmp_path / "config.yaml").write_text(search().dump())
    for opts in (["SEARCH.HEADS.pose.width", "3"], ["SEARCH.HEADS.det.feature", "path2"]):
        for eval_only in (False, True):
            assert check_continued(search(*opts), eval_only) == {}
    with pytest.raises(
        InputError, match="SEARCH.HEADS.seg.feature is 'path2', allowed with --resume: 'path1'"
    ):
        check_continued(search("SEARCH.HEADS.seg.feature", "path2"), False)


def test_a_damaged_configuration_is_named(stub, stub_args, tmp_path, capsys):
    assert stub.main(stub_args("run")) == 0
    for content in (b"- 1", b"\xff\xfe", b"a: [", b"[" * 3000):
        (tmp_path / "run" / "config.yaml").write_bytes(content)
        refused(capsys, stub, stub_args("run", "--resume", "SEED", -1), "config.yaml is damaged")


def test_a_configuration_that_somebody_wrote_is_not_replaced(stub, stub_args, tmp_path, capsys):
    """As where OUTPUT_DIR is the folder of the configuration itself."""
    own = tmp_path / "run" / "config.yaml"
    own.parent.mkdir()
    for content in ("# notes\n" + stub.CONFIG, "no: [yaml", ""):
        own.write_text(content)
        for option in ((), ("--resume",)):
            refused(capsys, stub, stub_args("run", *option), "config.yaml that no run has written", "rename")
        assert own.read_text() == content and len(list(own.parent.iterdir())) == 1
    own.unlink()
    assert stub.main(stub_args("run")) == 0
    for checkpoint in own.parent.glob("model_*.pth"):
        checkpoint.unlink()
    assert stub.main(stub_args("run")) == 0  # of a run that has ended before its first checkpoint


def test_a_run_does_not_go_back(stub, stub_args, tmp_path, capsys):
    """A MAX_ITER below what is done, or a checkpoint that is further, is no finished run."""
    assert stub.main(stub_args("run")) == 0
    before = files(tmp_path / "run")
    refused(
        capsys, stub, stub_args("run", "--resume", "SOLVER.MAX_ITER", 5), "SOLVER.MAX_ITER is 5", "12 or more"
    )
    assert files(tmp_path / "run") == before
    assert stub.main(stub_args("run", "--eval-only", "SOLVER.MAX_ITER", 5)) == 0
    path = tmp_path / "run" / "model_final.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "iteration": 10**7}, path)
    refused(capsys, stub, stub_args("run", "--resume"), "allowed with --resume: 10000001 or more")


def test_no_url_becomes_a_folder(stub, stub_args, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    for key in ("OUTPUT_DIR", "MODEL.WEIGHTS"):
        refused(
            capsys, stub, stub_args("run", key, "s3://bucket/x"), f"{key} is 's3://bucket/x'", "this machine"
        )
    assert set(tmp_path.iterdir()) == before


def test_a_second_run_in_a_running_runs_folder_is_refused(stub, stub_args, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["d2go_fbnetv5.engine.train"], "_LOCK_SECONDS", 0)
    assert stub.main(stub_args("run")) == 0
    before = files(tmp_path / "run")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", hold, str(tmp_path / "run" / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        for option in ("--resume", "--eval-only"):
            refused(capsys, stub, stub_args("run", option), "in use by another run (process ")
        other.communicate("\n")
    assert files(tmp_path / "run") == before
    assert stub.main(stub_args("run", "--resume")) == 0


def test_the_next_run_removes_what_a_killed_one_left(stub, stub_args, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("model_0000007.pth", "last_checkpoint", "model.json", "config.yaml", "report.html"):
        (tmp_path / "run" / f"{name}.host.77.0123abcd.tmp").touch()
    assert stub.main(stub_args("run")) == 0
    assert not list((tmp_path / "run").glob("*.tmp"))
