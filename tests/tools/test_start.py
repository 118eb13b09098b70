"""From photographs to a file for a phone: the steps of `start`, what it refuses before any of them, and going on."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from d2go_fbnetv5.tools import export, front, start, train_net
from PIL import Image

from d2go_fbnetv5.arch import block_costs, build_family
from d2go_fbnetv5.arch.latency_table import write_latency_table
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import prepare
from d2go_fbnetv5.export import get_format
from d2go_fbnetv5.pipeline import Budget, parse_budget
from d2go_fbnetv5.pseudo_labels.settings import load_settings
from d2go_fbnetv5.utils.errors import InputError

SMALL = ("--device", "cpu", "--size", "64", "--format", "torchscript")
BRIGHT = ("--teacher", "bright_photos:Bright")
TEACHER = '''
import torch
from d2go_fbnetv5.pseudo_labels import Teacher

class Bright(Teacher):
    """What is bright in a dark photograph is an object."""

    box_names, sem_seg_names = ("bright",), ("dark", "bright")

    def __init__(self, device):
        pass

    def __call__(self, images):
        return [self.label(image.float().mean(0) > 150) for image in images]

    def label(self, bright):
        rows, columns = (bright.any(dim).nonzero()[:, 0] for dim in (1, 0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        probabilities = torch.stack([~bright, bright]).float()
        ones = torch.ones(1)
        return {"boxes": torch.tensor([box]).float(), "scores": ones, "labels": 0 * ones.long(),
                "probabilities": probabilities}
'''


def take_photos(folder, count, of=("",)):
    """Photographs of one bright rectangle each, three shapes in turn, in folders in turn."""
    random = np.random.default_rng(0)
    for number in range(count):
        height, width = [(72, 96), (96, 72), (80, 80)][number % 3]
        pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        top, left = random.integers(0, height - 36), random.integers(0, width - 36)
        pixels[top : top + 32, left : left + random.integers(16, 36)] = 230
        path = folder / of[number % len(of)] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with twelve photographs and a teacher."""
    take_photos(tmp_path / "photos", 12)
    (tmp_path / "bright_photos.py").write_text(TEACHER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("bright_photos", None)


def call(*more, task="det", teacher=BRIGHT, budget="6M flops"):
    return start.main(["photos", "--task", task, *teacher, "--budget", budget, *SMALL, *map(str, more)])


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("12 ms", Budget(12.0, "latency")),
        ("0.5ms", Budget(0.5, "latency")),
        ("300M flops", Budget(3e8, "flops")),
        ("0.3 GFLOPs", Budget(3e8, "flops")),
        ("9.0e+6 FLOPs", Budget(9e6, "flops")),
        ("500k params", Budget(5e5, "params")),
    ],
)
def test_a_budget_is_a_number_with_its_unit(text, budget):
    found = parse_budget(text)
    assert (found.most, found.metric) == (pytest.approx(budget.most), budget.metric)


@pytest.mark.parametrize(
    "text", ["", "12", "ms", "12 s", "12 mms", "-3 ms", "0 flops", "1.2.3 ms", "1e999 flops", "3 k ms"]
)
def test_any_other_budget_is_refused(text):
    with pytest.raises(InputError, match="--budget is .* allowed is a number over 0 with its unit"):
        parse_budget(text)


def test_the_steps_are_shown_and_written_and_not_run(here, capsys):
    assert call("--dry-run") == 0
    shown = [line.split("] ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    output = here / "output" / "photos_det"
    assert (output / "steps.sh").read_text().splitlines() == shown
    tools = [shlex.split(line)[0].removeprefix("d2go_fbnetv5.") for line in shown]
    assert tools == ["pseudo_label", "pseudo_label", "train_net", "front", "train_net", "export"]
    assert not (output / "labels").exists() and not (output / "search").exists()


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_the_configurations_are_ones_that_the_steps_take(here, task):
    take_photos(here / "photos", 12, of=("a", "b"))
    teacher = ("--teacher", "dataset") if task == "cls" else BRIGHT
    assert call("--dry-run", "--output", "all", "--iterations", 30, task=task, teacher=teacher) == 0
    source = "dataset" if task == "cls" else "teacher"
    for part in ("1_labels_train", "2_labels_val"):
        assert source == load_settings(f"all/{part}.yaml")[task.upper()].SOURCE
    search = prepare(load_cfg("all/3_search.yaml"), 1)
    assert dict(search.SEARCH.COST.BUDGET) == {task: 6e6}
    assert (search.SOLVER.MAX_ITER, search.SEARCH.ARCH_WARMUP_ITERS) == (30, 21)
    cfg = load_cfg("all/5_train.yaml")
    assert str(here / "all" / "search" / "front" / "front.json") == cfg.MODEL.FBNETV5.TOPOLOGY
    assert cfg.MODEL.FBNETV5.BUDGET.pop("flops") == 6e6
    cfg.MODEL.FBNETV5.TOPOLOGY = ""  # there is no front yet
    prepare(cfg, 1)


def test_a_small_backbone_has_small_heads(here):
    assert call("--dry-run", "--output", "small") == 0
    assert call("--dry-run", "--output", "a", "--family", "A", "--size", 128, budget="100M flops") == 0
    heads = [load_cfg(f"{folder}/5_train.yaml").MODEL.FBNETV5.HEAD for folder in ("small", "a")]
    assert [head.get("width", 1.0) for head in heads] == [0.125, 1.0]


def test_a_gpus_scale_is_the_papers_family(here, monkeypatch):
    monkeypatch.setattr("d2go_fbnetv5.pipeline.check_device", lambda *args: None)
    assert (
        call("--dry-run", "--device", "cuda", "--size", 224, "--num-processes", 2, budget="400M flops") == 0
    )
    for name in ("3_search", "5_train"):
        cfg = load_cfg(f"output/photos_det/{name}.yaml")
        assert (cfg.MODEL.FBNETV5.FAMILY, cfg.MODEL.DEVICE) == ("A", "cuda")
    assert (here / "output" / "photos_det" / "steps.sh").read_text().count("--num-processes 2") == 4


def test_milliseconds_are_those_of_the_phones_table(here):
    flops = block_costs("N", (64, 64))
    costs = type(flops)("latency", *(tuple(c / 1e6 for c in part) for part in (flops.stage0, flops.blocks)))
    write_latency_table("phone.csv", costs, build_family("N"), (64, 64))
    assert call("--dry-run", "--latency-table", "phone.csv", budget="6 ms") == 0
    table = str(here / "phone.csv")
    cost = load_cfg("output/photos_det/3_search.yaml").SEARCH.COST
    assert (cost.METRIC, cost.TABLE, cost.BUDGET.det) == ("latency", table, 6.0)
    assert dict(load_cfg("output/photos_det/5_train.yaml").MODEL.FBNETV5.BUDGET) == {table: 6.0}
    assert f"--cost {table} " in (here / "output" / "photos_det" / "steps.sh").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"budget": "twelve"}, "--budget is 'twelve'"),
        ({"budget": "12 ms"}, "allowed without --latency-table"),
        ({"budget": "1 flops"}, "--budget is 1 FLOPs, allowed is"),
        ({"task": "pose"}, "--task is 'pose', allowed: cls, det, seg"),
        ({"teacher": ("--teacher", "torchvison")}, "--teacher is 'torchvison', allowed: "),
        ({"teacher": ("--teacher", "dataset")}, "--teacher is dataset, allowed with --task cls"),
        ({"teacher": ("--teacher", "run", "output/det")}, "expected KEY=VALUE"),
        ({"more": ("--output", "photos/out")}, "in the folder of photographs"),
        ({"more": ("--format", "onyx")}, "unknown format 'onyx'"),
        ({"more": ("--family", "Z")}, "Z"),
        ({"more": ("--weights", "nowhere.pth")}, "--weights names nowhere.pth"),
        ({"more": ("--latency-table", "phone.csv")}, "allowed with --latency-table: milliseconds"),
        ({"more": ("--evaluations", "3")}, "--evaluations 3: allowed is 40 or more"),
        ({"more": ("--device", "tpu")}, "--device is 'tpu'"),
    ],
)
def test_odd_input_is_one_sentence_before_anything_is_started(here, capsys, more, words):
    assert call(*more.pop("more", ()), **more) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("start: ")]) == 1 and words in errors[-1]
    assert not (here / "output").exists()


def test_a_folder_needs_photographs(here, capsys):
    for photo in sorted((here / "photos").iterdir())[:3]:
        photo.unlink()
    assert call() == 2
    assert "photos has 9, allowed: 10 or more" in capsys.readouterr().err
    for photo in (here / "photos").iterdir():
        photo.unlink()
    assert call() == 2
    assert "has no images" in capsys.readouterr().err


@pytest.fixture
def tools(monkeypatch):
    """Stands in for all steps but the labels: each leaves its result, or a status in place of it."""
    run, status = [], {}

    def stand_in(name, leave):
        def main(arguments):
            run.append(name(arguments))
            if not status.get(run[-1]):
                leave(arguments)
            return status.get(run[-1], 0)

        return main

    def trained(arguments):
        cfg = load_cfg(arguments[1])
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir()
        (folder / "model_final.pth").touch()
        (folder / "report.html").touch()
        (folder / "metrics.json").write_text('{"iteration": 19, "eval/AP": 0.5}\n')

    def judged(arguments):
        (Path(arguments[0]) / "front").mkdir()
        (Path(arguments[0]) / "front" / "front.json").touch()

    def exported(arguments):
        folder = Path(arguments[-1])
        folder.mkdir()
        (folder / "model.pt").touch()
        (folder / "model.json").write_text('{"file": "model.pt"}')

    monkeypatch.setattr(train_net, "main", stand_in(lambda a: Path(a[1]).stem, trained))
    monkeypatch.setattr(front, "main", stand_in(lambda a: "4_front", judged))
    monkeypatch.setattr(export, "main", stand_in(lambda a: "6_export", exported))
    return run, status


def test_what_is_done_is_not_done_again_and_what_failed_is(here, tools, capsys):
    run, status = tools
    status["4_front"] = 2
    assert call() == 2
    assert "step 4_front ended with status 2; the same command goes on" in capsys.readouterr().err
    labelled = {
        part: MultitaskDataset(here / "output/photos_det/labels" / part / "index")
        for part in ("train", "val")
    }
    names = {
        part: [Path(each.image_path(i)).name for i in range(len(each))] for part, each in labelled.items()
    }
    assert names["val"] == ["004.png", "009.png"] and len(set(names["train"])) == 10
    assert all(len(sample["boxes"]) == 1 for each in labelled.values() for sample in each)
    status.clear()
    assert call() == 0
    assert run == ["3_search", "4_front", "4_front", "5_train", "6_export"]
    assert capsys.readouterr().out.count("# done") == 3
    assert call() == 0 and len(run) == 5
    (here / "output/photos_det/torchscript/model.json").write_text('{"file": "model.unchecked.pt"}')
    assert call("--dry-run") == 0
    assert [line[-6:] == "# done" for line in capsys.readouterr().out.splitlines()[-6:]] == [True] * 5 + [
        False
    ]


def test_a_changed_configuration_stays_and_other_wishes_need_another_folder(here, capsys):
    assert call("--dry-run") == 0
    config = here / "output/photos_det/3_search.yaml"
    config.write_text("mine")
    assert call("--dry-run") == 0 and config.read_text() == "mine"
    assert call("--dry-run", budget="7M flops") == 2
    assert (
        "budget '6M flops', now '7M flops'); allowed: the same command, or another --output"
        in capsys.readouterr().err
    )


def signs(output):
    """What each step has left, or is leaving, in its middle."""
    return [
        lambda: list(output.glob("labels/train/chunks/*")),
        lambda: list(output.glob("labels/val/chunks/*")),
        lambda: list(output.glob("search/model_0*.pth")),
        lambda: list(output.glob("search/front/evaluations.json")),
        lambda: list(output.glob("det/model_0*.pth")),
        lambda: list(output.glob("torchscript/*")),
    ]


@pytest.mark.slow
def test_sixty_photographs_become_a_detector_though_every_step_is_killed(here):
    take_photos(here / "photos", 60)
    command = ["photos", "--task", "det", *BRIGHT, "--budget", "6M flops", *SMALL]
    command += ["--iterations", "40", "--evaluations", "40"]
    command = [sys.executable, "-m", "d2go_fbnetv5.tools.start", *command]
    output, killed = here / "output" / "photos_det", 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for sign in [*signs(output), lambda: False]:
        with open("log.txt", "ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        until = time.monotonic() + 900
        while process.poll() is None and not sign():
            assert time.monotonic() < until, Path("log.txt").read_text()[-3000:]
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
            process.wait()
        else:
            assert process.returncode == 0, Path("log.txt").read_text()[-3000:]
    assert process.returncode == 0 and killed >= 5
    search = [json.loads(line) for line in (output / "search" / "metrics.json").read_text().splitlines()]
    assert [each["iteration"] for each in search if "loss_det" in each] == [19, 39]
    network = load_topologies(output / "search" / "front" / "front.json").task(
        "det", {"flops": 6e6}, "N", ("path1",)
    )
    assert block_costs("N", (64, 64)).network(network.topology, ("path1",)) <= 6e6
    described = json.loads((output / "torchscript" / "model.json").read_text())
    detector = get_format("torchscript").load(output / "torchscript" / "model.pt", described)
    boxes, scores, labels = detector(torch.full((1, 3, 64, 96), 40.0))
    assert boxes.shape[-1] == 4 and scores.shape == labels.shape and scores.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cls", "seg"])
def test_photographs_become_a_network_for_the_other_tasks(here, task):
    for photo in (here / "photos").iterdir():
        photo.unlink()
    take_photos(here / "photos", 15, of=("a", "b"))
    teacher = ("--teacher", "dataset") if task == "cls" else BRIGHT
    assert call("--iterations", 4, "--evaluations", 40, task=task, teacher=teacher) == 0
    assert (here / "output" / f"photos_{task}" / "torchscript" / "model.pt").is_file()
