import json
import os
from pathlib import Path

import pytest
import torch
from d2go_fbnetv5.tools.train_net import main

from d2go_fbnetv5 import Task, register_task
from d2go_fbnetv5.arch.topology_file import load_topologies

SMALL = """
_BASE_: search_digits_scratch.yaml
MODEL: {FBNETV5: {NUM_STAGES: 2}}
SEARCH:
  TASKS: [cls, seg]
  SAMPLES_PER_RANK: 2
  ARCH_WARMUP_ITERS: 2
  ARCH_LR_FACTOR: 0.05
  COST: {SIZE: [64, 64]}
  EVAL: {RANDOM_TOPOLOGIES: 2, BN_ITERS: 1, MAX_IMAGES: 8}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {SIZE: [64, 64]}}
FBNETV5_DATA: {DATASETS: {digit_scenes_train: {size: 64, num_images: 64}, digit_scenes_val: {size: 64, num_images: 16}}}
SOLVER: {IMS_PER_BATCH: 8, MAX_ITER: 6, STEPS: [4], WARMUP_ITERS: 2, CHECKPOINT_PERIOD: 2}
TEST: {EVAL_PERIOD: 3}
MODEL_EMA: {ENABLED: True, DECAY: 0.5}
WRITER_PERIOD: 2
"""


@pytest.fixture
def args(tmp_path):
    from d2go_fbnetv5.engine.config import find_config

    config = tmp_path / "small.yaml"
    config.write_text(
        SMALL.replace("search_digits_scratch.yaml", str(find_config("search_digits_scratch.yaml")))
    )

    def build(*more, folder="run"):
        return ["--config-file", str(config), "--output-dir", str(tmp_path / folder), *map(str, more)]

    return build


def test_a_search_leaves_everything_and_can_be_evaluated_again(args, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(args()) == 0
    table = capsys.readouterr().out
    assert "cls" in table and "random" in table
    left = {path.name for path in run.iterdir()}
    assert left >= {
        *("topologies.json", "topologies.svg", "topologies.png", "probabilities.png", "report.html"),
        *("metrics.json", "config.yaml", "log.txt", "model_final.pth", "last_checkpoint"),
    }
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert not any(name.endswith(".tmp") for name in left)

    history = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    training = [record for record in history if "loss_cls" in record]
    assert [record["iteration"] for record in training] == [1, 3, 5]
    keys = {
        "loss_arch_seg",
        "lr",
        "arch_lr",
        "probs/cls",
        "entropy/cls",
        "ess/seg",
        "expected_cost/cls",
        "time",
        "data_time",
    }
    assert keys <= training[0].keys()
    assert training[0]["arch_lr"] == pytest.approx(0.05 * training[0]["lr"])
    assert [record["iteration"] for record in history if "eval/cls/top1" in record] == [2, 5]
    assert {"eval/ema/cls/top1", "eval/ema/seg/mIoU"} <= history[-1].keys()
    assert torch.tensor(training[0]["probs/seg"]).shape == (2, 4)

    # Where the topologies stand in the file: what the checkpoint says.
    first = load_topologies(run / "topologies.json")
    probs = torch.load(run / "model_final.pth", weights_only=True)["model"]["distribution.probs"]
    assert first.tasks["seg"].topology.mask == tuple(map(tuple, (probs[1] > 0.5).tolist()))
    report = (run / "report.html").read_text()
    (run / "report.html").unlink()
    before = (run / "model_final.pth").stat().st_mtime_ns
    assert main(args("--eval-only")) == 0
    assert (run / "report.html").exists() and len(report) > 1000
    assert load_topologies(run / "topologies.json") == first
    assert (run / "model_final.pth").stat().st_mtime_ns == before
    again = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [r["iteration"] for r in again if "eval/cls/top1" in r] == [2, 5]


def test_a_run_is_not_started_over_by_mistake(args, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    precious = tmp_path / "run" / "model_0000001.pth"
    precious.write_bytes(b"precious")
    assert main(args()) == 2
    assert "--resume" in capsys.readouterr().err
    assert precious.read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [precious.name]


@pytest.mark.parametrize(
    "more, words",
    [
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0"),
        (["DATASETS.TRAIN", "('nix',)"], "nix"),
        (["FBNETV5_DATA.DATASETS.digit_scenes_train.colour", "3"], "colour"),
        (["SEARCH.HEADS.cls.wdith", "3"], "SEARCH.HEADS.cls"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS"),
        (["--eval-only"], "no checkpoint"),
        (["--num-processes", "0"], "--num-processes"),
        (["DATASETS.TRAIN", "('mine',)", "FBNETV5_DATA.DATASETS.mine.READER", "multitask"], "mine"),
        (
            [
                *("DATASETS.TRAIN", "('mine',)", "FBNETV5_DATA.DATASETS.mine.READER", "multitask"),
                *("FBNETV5_DATA.DATASETS.mine.index", "/nowhere/index.json"),
            ],
            "/nowhere/index.json",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(args, tmp_path, capsys, more, words):
    assert main(args(*more)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("train_net: ")]) == 1
    assert words in errors[-1]
    assert not (tmp_path / "run").exists()


def test_a_missing_config_names_the_configurations(capsys):
    assert main(["--config-file", "nowhere.yaml"]) == 2
    assert "search_digits_scratch.yaml" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(args, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert main(args()) == 2
    assert "OUTPUT_DIR" in capsys.readouterr().err
    if os.geteuid() and Path("/proc").is_dir():  # root may write anywhere
        assert main(args("OUTPUT_DIR", "/proc/run")) == 2


def test_a_loss_that_is_not_a_number_leaves_the_last_good_checkpoint(args, tmp_path, capsys, monkeypatch):
    from d2go_fbnetv5.search import MultitaskSearch

    original = MultitaskSearch.forward

    def sick(self, batch):
        losses = original(self, batch)
        if self.training and self.iteration == 4:
            losses["loss_seg"] = losses["loss_seg"] * float("nan")
        return losses

    monkeypatch.setattr(MultitaskSearch, "forward", sick)
    assert main(args()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "iteration 3: loss_seg is nan" in error and "topologies sampled" in error
    state = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    monkeypatch.undo()
    assert main(args("--resume")) == 0


class CountDigits(Task):
    """How many digits an image shows."""

    in_features = ("path1",)
    primary_metric = "error"
    higher_is_better = False

    def __init__(self, channels, info):
        super().__init__()
        self.fc = torch.nn.Linear(channels["path1"], 1)

    def forward(self, features, batch):
        count = self.fc(features["path1"].mean(dim=(2, 3)))[:, 0]
        if not self.training:
            return [{"count": value} for value in count]
        truth = torch.tensor([len(sample["boxes"]) for sample in batch], dtype=count.dtype)
        return {"loss_count": torch.nn.functional.mse_loss(count, truth)}

    def evaluator(self, info):
        return MeanError()


class MeanError:
    def reset(self):
        self.errors = []

    def process(self, inputs, outputs):
        self.errors += [
            abs(float(o["count"]) - len(i["boxes"])) for i, o in zip(inputs, outputs, strict=True)
        ]

    def evaluate(self):
        return {"error": sum(self.errors) / len(self.errors)}


def test_a_fourth_task_joins_by_registration_alone(args, tmp_path):
    register_task("count_digits_for_test")(CountDigits)
    opts = [
        "SEARCH.TASKS",
        "['cls', 'count_digits_for_test']",
        "SOLVER.MAX_ITER",
        "3",
        "TEST.EVAL_PERIOD",
        "0",
    ]
    assert main(args(*opts)) == 0
    entry = load_topologies(tmp_path / "run" / "topologies.json").tasks["count_digits_for_test"]
    assert tuple(entry.outputs) == ("path1",)
    assert entry.metrics["error"] > 0
