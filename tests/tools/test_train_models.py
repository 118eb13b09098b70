"""The models of single tasks, trained from the command line on a handful of scenes, and shown by `predict`."""

import json

import cv2
import numpy as np
import pytest
import torch
from d2go_fbnetv5.tools import predict
from d2go_fbnetv5.tools.train_net import main

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.data import DigitScenes

TASKS = {"cls": "top1", "det": "AP50", "seg": "mIoU"}
SMALL = """
_BASE_: {base}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {{SIZE: [64, 64]}}}}
MODEL: {{WEIGHTS: "", FBNETV5: {{TOPOLOGY: {topology}}}}}
FBNETV5_DATA:
  DATASETS: {{digit_scenes_train: {{size: 64, num_images: 64}}, digit_scenes_val: {{size: 64, num_images: 9}}}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 4, WARMUP_ITERS: 1, CHECKPOINT_PERIOD: 2}}
WRITER_PERIOD: 1
"""


@pytest.fixture
def topology_file(tmp_path):
    path = tmp_path / "topologies.json"
    topology = Topology([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    outputs = {"cls": ["path3"], "det": ["path1"], "seg": ["path1", "path3"]}
    entries = {task: {"topology": topology, "outputs": paths} for task, paths in outputs.items()}
    save_topologies(path, "N", 3, (64, 64), entries)
    return path


@pytest.fixture
def args(tmp_path, topology_file):
    from d2go_fbnetv5.engine.config import find_config

    def build(task, *more, folder="run"):
        base = find_config(f"{task}/{task}_digits.yaml")
        config = tmp_path / f"{task}.yaml"
        config.write_text(SMALL.format(base=base, topology=topology_file))
        return ["--config-file", str(config), "--output-dir", str(tmp_path / folder), *map(str, more)]

    return build


@pytest.fixture
def photos(tmp_path):
    scenes = DigitScenes("val", size=(64, 96), num_images=2)
    paths = [tmp_path / f"scene{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), scenes[i]["image"].permute(1, 2, 0).numpy()[..., ::-1])
    return [str(path) for path in paths]


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_trained_judged_resumed_and_shown(args, tmp_path, capsys, photos, task):
    run, metric = tmp_path / "run", TASKS[task]
    assert main(args(task)) == 0
    table = capsys.readouterr().out
    assert metric in table and "averaged weights" in table and "9 images" in table
    last = history(run)[-1]
    assert {f"eval/{metric}", f"eval/ema/{metric}"} <= last.keys()
    assert json.loads((run / "network.json").read_text())["task"] == task

    # Stopped after two steps and resumed, it ends with the very same weights and figures.
    assert main(args(task, "SOLVER.CHECKPOINT_KEEP", 9, folder="whole")) == 0
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "model_0000001.pth").write_bytes((tmp_path / "whole" / "model_0000001.pth").read_bytes())
    (cut / "last_checkpoint").write_text("model_0000001.pth")
    assert main(args(task, "--resume", folder="cut")) == 0
    ends = [torch.load(f / "model_final.pth", weights_only=True) for f in (run, cut)]
    for part in ("model", "ema"):
        assert all(torch.equal(value, ends[1][part][name]) for name, value in ends[0][part].items())
    assert {k: v for k, v in history(cut)[-1].items() if "eval" in k} == {
        k: v for k, v in last.items() if "eval" in k
    }

    out = tmp_path / "shown"
    assert predict.main([*photos, "--run", str(run), "--output", str(out), "--threshold", "0"]) == 0
    found = json.loads((out / "predictions.json").read_text())
    assert [entry["image"] for entry in found] == photos
    assert all(cv2.imread(str(out / f"scene{i}.png")).shape == (64, 96, 3) for i in range(2))
    for entry in found:
        assert (entry["height"], entry["width"]) == (64, 96)
        if task == "cls":
            scores = [shown["score"] for shown in entry["classes"]]
            assert scores == sorted(scores, reverse=True) and len(scores) == 5
        elif task == "det":
            boxes = np.array([shown["box"] for shown in entry["boxes"]]).reshape(-1, 4)
            assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()
        else:
            labels = cv2.imread(str(out / entry["sem_seg_file_name"]), cv2.IMREAD_UNCHANGED)
            assert labels.shape == (64, 96)
            assert sum(shown["share"] for shown in entry["sem_seg"]) == pytest.approx(1, abs=1e-4)
            assert {shown["label"] for shown in entry["sem_seg"]} == set(np.unique(labels))


def test_weights_come_from_a_supernet_or_a_model(args, tmp_path, capsys):
    torch.manual_seed(5)
    supernet = Supernet("N", 3)
    weights = tmp_path / "search.pth"
    torch.save({"model": {f"supernet.{k}": v for k, v in supernet.state_dict().items()}}, weights)
    start = ("SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 1e-12, "MODEL.WEIGHTS")
    assert main(args("cls", *start, weights)) == 0
    trained = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    name = "stage0.path0.0.conv.weight"
    assert torch.allclose(trained[f"backbone.{name}"], supernet.state_dict()[name], atol=1e-6)

    again = args("cls", *start, tmp_path / "run" / "model_final.pth", folder="again")
    assert main(again) == 0
    other = torch.load(tmp_path / "again" / "model_final.pth", weights_only=True)["model"]
    assert torch.allclose(other["head.fc.weight"], trained["head.fc.weight"], atol=1e-6)
    capsys.readouterr()
    assert main(args("cls", "--eval-only", "MODEL.WEIGHTS", weights, folder="untrained")) == 2
    assert (
        "has no weights for the head of a ImageClassifier; train the model first" in capsys.readouterr().err
    )
    # A classifier's weights are no detector's.
    wrong = args("det", "MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth", folder="wrong")
    assert main(wrong) == 2
    assert "MODEL.WEIGHTS" in capsys.readouterr().err


def test_a_run_does_not_go_on_as_another_network(args, tmp_path, capsys):
    """As after another search has left its topologies in the place of the first one's."""
    assert main(args("cls", "SOLVER.MAX_ITER", 1)) == 0
    capsys.readouterr()
    for more in (("--resume", "SOLVER.MAX_ITER", 2), ("--eval-only",)):
        assert main(args("cls", *more, "MODEL.FBNETV5.TOPOLOGY", "''")) == 2
        error = capsys.readouterr().err
        assert (
            "MODEL.FBNETV5.TOPOLOGY is '', whose network of cls is another one than that of the run in"
            in error
        )
        assert error.count("\n") == 1


@pytest.mark.parametrize("family", ["N", "A_C"])
def test_one_topology_file_serves_any_size(args, tmp_path, family):
    for task in TASKS:
        run = args(task, "MODEL.FBNETV5.FAMILY", family, "SOLVER.MAX_ITER", 1, folder=f"{task}_{family}")
        assert main(run) == 0
        last = history(tmp_path / f"{task}_{family}")[-1]
        assert 0 <= last[f"eval/{TASKS[task]}"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_give_one_result(args, tmp_path, task):
    assert main(args(task, "--num-processes", 2, "SOLVER.MAX_ITER", 2)) == 0
    last = history(tmp_path / "run")[-1]
    assert 0 <= last[f"eval/{TASKS[task]}"] <= 1
    assert (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        ("cls", ["MODEL.FBNETV5.TOPOLOGY", "nowhere.json"], "MODEL.FBNETV5.TOPOLOGY names nowhere.json"),
        ("cls", ["MODEL.FBNETV5.TOPOLOGY_TASK", "depth"], "no task 'depth'"),
        ("cls", ["MODEL.FBNETV5.FAMILY", "Z"], "MODEL.FBNETV5.FAMILY is 'Z'"),
        ("cls", ["MODEL.FBNETV5.HEAD.drop", "1"], "MODEL.FBNETV5.HEAD has no option 'drop'"),
        ("cls", ["MODEL.FBNETV5.HEAD.dropout", "2"], "MODEL.FBNETV5.HEAD: option 'dropout' is 2"),
        ("cls", ["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS"),
        (
            "cls",
            ["MODEL.FBNETV5.DISTILLATION.TEACHER_WEIGHTS", "nowhere.pth"],
            "TEACHER_WEIGHTS names nowhere.pth",
        ),
        ("det", ["MODEL.FBNETV5.DISTILLATION.TEACHER", "resnet18"], "is set, to 'resnet18', but nothing"),
        ("det", ["FBNETV5_DATA.CROP_AREA", "[0.1, 1]"], "FBNETV5_DATA.CROP_AREA"),
        ("det", ["INPUT.MAX_SIZE_TEST", "10"], "INPUT.MAX_SIZE_TEST is 10"),
        ("seg", ["INPUT.MAX_SIZE_TRAIN", "64"], "INPUT.MAX_SIZE_TRAIN is 64"),
        ("seg", ["SOLVER.LR_MULTIPLIER_OVERWRITE", "[3]"], "SOLVER.LR_MULTIPLIER_OVERWRITE is [3]"),
        ("seg", ["FBNETV5_DATA.RAND_AUGMENT", "9"], "FBNETV5_DATA.RAND_AUGMENT is set, to 9"),
        ("seg", ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "0"], "SINGLE_CATEGORY_MAX_AREA is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(args, tmp_path, capsys, task, more, words):
    assert main(args(task, *more)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "one of --run DIR and --model NAME"),
        (["--run", "nowhere"], "run nowhere: no network.json"),
        (["--model", "FBNetV5-N-DET"], "needs --weights"),
        (["--model", "FBNetV5-N-DET", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--model", "FBNetV5-N-XYZ", "--weights", "nowhere.pth"], "unknown model"),
        (["--run", "nowhere", "--threshold", "3"], "--threshold 3"),
        (["--run", "nowhere", "--size", "big"], "--size big"),
    ],
)
def test_predict_wrong_input_is_one_sentence(tmp_path, capsys, photos, argv, words):
    out = tmp_path / "shown"
    assert predict.main([*photos, *argv, "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("predict: ") and words in error and error.count("\n") == 1
    assert not out.exists()


def test_predict_with_a_model_of_the_zoo(tmp_path, capsys, photos):
    from d2go_fbnetv5.zoo import create_model

    weights, names = tmp_path / "weights.pth", tmp_path / "names.txt"
    torch.save(create_model("FBNetV5-N-CLS", num_classes=3).state_dict(), weights)
    names.write_text("ant\nbee\ncat\n")
    argv = ["--model", "FBNetV5-N-CLS", "--weights", str(weights), "--names", str(names)]
    assert predict.main([*photos, *argv, "--output", str(tmp_path / "shown")]) == 0
    (entry, _) = json.loads((tmp_path / "shown" / "predictions.json").read_text())
    assert {shown["name"] for shown in entry["classes"]} == {"ant", "bee", "cat"}
    assert sum(shown["score"] for shown in entry["classes"]) == pytest.approx(1, abs=1e-4)
    supernet = tmp_path / "supernet.pth"
    torch.save(Supernet("N", 7).state_dict(), supernet)
    argv[3] = str(supernet)
    capsys.readouterr()
    assert predict.main([*photos, *argv, "--output", str(tmp_path / "shown")]) == 2
    assert "train the model first" in capsys.readouterr().err


def test_a_benchmark_calibrates_a_run_with_its_training_images(args, tmp_path):
    from d2go_fbnetv5.export.measure.subjects import open_subject

    assert main(args("cls", "SOLVER.MAX_ITER", 1)) == 0
    images = list(open_subject(str(tmp_path / "run")).calibration((64, 64)))
    scenes = DigitScenes("train", size=64, num_images=64)
    assert len(images) == 64  # all that there are, of the 128 wanted
    for i in (0, 63):
        assert torch.equal(images[i][0], scenes[i]["image"].float())

    noise = open_subject("FBNetV5-N-CLS").calibration((64, 96))
    assert noise[0].shape == (1, 3, 64, 96) and 100 < noise[0].mean() < 155
