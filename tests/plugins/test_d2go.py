"""D2Go's commands on our runners: the same numbers as the embedded host's, resume, several processes, export."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.config import get_cfg
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.utils.formatting import format_least

ROOT = Path(__file__).parent.parent.parent
RUNNER = "d2go_fbnetv5.runner."
HAS_ALL = all(  # a stand-in has no origin
    getattr(importlib.util.find_spec(name), "origin", None)
    for name in ("pkg_resources", "torch.ao.quantization.quantize_pt2e")
)
SMALL = f"""
_BASE_: {ROOT}/configs/search_digits_scratch.yaml
MODEL: {{FBNETV5: {{NUM_STAGES: 3}}}}
SEARCH:
  SAMPLES_PER_RANK: 2
  ARCH_WARMUP_ITERS: 3
  COST: {{SIZE: [64, 64]}}
  EVAL: {{RANDOM_TOPOLOGIES: 1, BN_ITERS: 1, MAX_IMAGES: 8}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {{SIZE: [64, 64]}}}}
FBNETV5_DATA:
  DATASETS: {{digit_scenes_train: {{size: 64, num_images: 64}}, digit_scenes_val: {{size: 64, num_images: 8}}}}
SOLVER: {{IMS_PER_BATCH: 8, MAX_ITER: 20, STEPS: [15], WARMUP_ITERS: 4, CHECKPOINT_PERIOD: 12}}
TEST: {{EVAL_PERIOD: 8}}
MODEL_EMA: {{DECAY: 0.9}}
WRITER_PERIOD: 1
"""
MODEL = f"""
_BASE_: {ROOT}/configs/_base_digits.yaml
MODEL: {{WEIGHTS: "", FBNETV5: {{TOPOLOGY: ""}}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {{SIZE: [64, 64]}}}}
FBNETV5_DATA:
  DATASETS: {{digit_scenes_train: {{size: 64, num_images: 64}}, digit_scenes_val: {{size: 64, num_images: 8}}}}
SOLVER:
  {{IMS_PER_BATCH: 8, BASE_LR: 0.001, LR_SCHEDULER_NAME: WarmupMultiStepLR, MAX_ITER: 5, STEPS: [4], WARMUP_ITERS: 2}}
MODEL_EMA: {{DECAY: 0.9}}
WRITER_PERIOD: 1
"""


def run(module: list[str], *args: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *module, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def d2go_command(name: str) -> list[str]:
    """D2Go's own, or where packages lack what it asks for ours that runs it."""
    return ["-m", f"d2go.tools.{name}"] if HAS_ALL else ["-m", "d2go_fbnetv5.d2go", name]


def d2go_train(runner: str, config: Path, output: Path, *more: str) -> str:
    args = ["--runner", RUNNER + runner, "--config-file", str(config), "--output-dir", str(output)]
    return run(d2go_command("train_net"), *args, "--disable-post-mortem", *more)


def history(folder: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    merged: dict[int, dict] = {}
    for line in lines:
        merged.setdefault(line["iteration"], {}).update(line)
    return merged


def assert_same_training(
    found: dict[int, dict], expected: dict[int, dict], names: tuple[str, ...], steps: int
) -> None:
    assert len(expected) == steps
    for iteration, record in expected.items():
        for name, value in record.items():
            if name.startswith(names):
                # Of a single loss Detectron2 writes the total alone.
                one = name.startswith("loss") and name not in found[iteration]
                theirs = torch.tensor(found[iteration]["total_loss" if one else name])
                torch.testing.assert_close(
                    theirs, torch.tensor(value), atol=1e-4, rtol=1e-4, msg=f"{iteration} {name}"
                )


MODELS = {"LiteRCNN": ("det", "AP"), "LiteMaskFormer": ("seg", "mIoU"), "ImageClassifier": ("cls", "top1")}


@pytest.fixture(scope="module")
def config(d2go, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def model_config(d2go, tmp_path_factory):
    path = tmp_path_factory.mktemp("model_config") / "small.yaml"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def search(config, tmp_path_factory):
    """A search by D2Go's command."""
    folder = tmp_path_factory.mktemp("search") / "run"
    d2go_train("MultitaskSearchRunner", config, folder)
    return folder


@pytest.mark.parametrize(
    "file",
    sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "configs").rglob("*.yaml")
        if path.parent.name != "pseudo_label"  # of pseudo_label alone
    ),
)
def test_every_config_means_the_same_in_all_hosts(d2go, file, monkeypatch):
    from detectron2.config import get_cfg as detectron2_cfg

    from d2go_fbnetv5.engine.config import load_cfg
    from d2go_fbnetv5.plugins.detectron2 import add_fbnetv5_config
    from d2go_fbnetv5.runner import FBNetV5Runner

    monkeypatch.chdir(ROOT)
    hosts = [FBNetV5Runner.get_default_cfg(), detectron2_cfg()]
    add_fbnetv5_config(hosts[1])
    ours = flat(load_cfg(file))
    for cfg in hosts:
        cfg.merge_from_file(file)
    theirs = flat(hosts[0])
    assert {key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value} == {}
    given = flat(type(hosts[1])(hosts[1].load_yaml_with_base(file)))
    theirs = flat(hosts[1])
    assert {key for key in given if key not in theirs} == set()


def flat(node, prefix=""):
    found = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if hasattr(value, "items"):
            found |= flat(value, f"{name}.")
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def test_groups_of_options_can_be_added_to(config):
    from d2go_fbnetv5.runner import FBNetV5Runner

    cfg = FBNetV5Runner.get_default_cfg()
    cfg.merge_from_file(str(config))
    cfg.merge_from_list(["FBNETV5_DATA.DATASETS.digit_scenes_val.max_digits", "2", "SEARCH.HEADS.seg.x", "1"])
    assert dict(cfg.FBNETV5_DATA.DATASETS.digit_scenes_val) == {"size": 64, "num_images": 8, "max_digits": 2}
    with pytest.raises(KeyError):
        cfg.merge_from_list(["SEARCH.HEAD.seg", "1"])


def test_runners_defaults_are_the_embedded_hosts(d2go):
    from d2go_fbnetv5.runner import FBNetV5Runner

    theirs, ours = flat(FBNetV5Runner.get_default_cfg()), flat(get_cfg())
    different = {key for key, value in ours.items() if theirs.get(key) != value}
    assert different == set()


def test_first_steps_equal_the_embedded_hosts(search, config, tmp_path):
    run(["tools/train_net.py"], "--config-file", str(config), "--output-dir", str(tmp_path / "embedded"))
    ours, theirs = history(tmp_path / "embedded"), history(search)
    names = ("loss", "probs/", "lr", "arch_lr", "entropy/", "ess/", "expected_cost/")
    assert_same_training(theirs, ours, names, steps=20)
    assert {name for name in ours[19] if name.startswith("probs/")} == {"probs/cls", "probs/det", "probs/seg"}
    for iteration in (7, 15, 19):
        metrics = [name for name in ours[iteration] if name.startswith("eval/")]
        assert len(metrics) > 10
        for name in metrics:
            assert theirs[iteration][name] == pytest.approx(ours[iteration][name], abs=1e-3)


def test_search_leaves_what_the_embedded_one_leaves(search):
    names = {path.name for path in search.iterdir()}
    wanted = {"report.html", "topologies.json", "topologies.svg", "topologies.png", "probabilities.png"}
    assert wanted | {"metrics.json", "config.yaml", "model_final.pth"} <= names
    assert list(load_topologies(search / "topologies.json").tasks) == ["cls", "det", "seg"]
    assert "model_0000011.pth" in names


def test_a_search_on_an_injected_set_is_the_one_on_the_same_file(config, tmp_path):
    from d2go_fbnetv5.data import DigitScenes, write_multitask

    file = write_multitask(DigitScenes("train", size=64, num_images=24), tmp_path / "data")
    opts = ["DATASETS.TRAIN", "['scenes']", "DATASETS.TEST", "['scenes']", "SEARCH.TASKS", "['det']"]
    opts += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[1]", "SOLVER.WARMUP_ITERS", "1"]
    injection = "D2GO_DATA.DATASETS.COCO_INJECTION."
    injected = [injection + "NAMES", "['scenes']", injection + "IM_DIRS", f"['{file.parent}']"]
    injected += [injection + "JSON_FILES", f"['{file}']"]
    d2go_train("MultitaskSearchRunner", config, tmp_path / "d2go", *opts, *injected)
    read = [
        "FBNETV5_DATA.DATASETS.scenes",
        f"{{READER: coco, annotations_json: {file}, image_root: {file.parent}}}",
    ]
    run(
        ["tools/train_net.py"],
        "--config-file",
        str(config),
        "--output-dir",
        str(tmp_path / "own"),
        *opts,
        *read,
    )
    assert_same_training(history(tmp_path / "d2go"), history(tmp_path / "own"), ("loss", "total_loss"), 2)
    theirs, own = (load_topologies(tmp_path / name / "topologies.json") for name in ("d2go", "own"))
    assert theirs.tasks["det"].topology == own.tasks["det"].topology
    last = [history(tmp_path / name)[1]["eval/det/AP"] for name in ("d2go", "own")]
    assert last[0] == pytest.approx(last[1], abs=1e-3)


def test_resumed_search_equals_an_uninterrupted_one(search, config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_0000011.pth").write_bytes((search / "model_0000011.pth").read_bytes())
    (folder / "last_checkpoint").write_text("model_0000011.pth")
    d2go_train("MultitaskSearchRunner", config, folder, "--resume")
    resumed, whole = history(folder), history(search)
    assert min(resumed) == 12
    for iteration, record in resumed.items():
        for name, value in record.items():
            if name.startswith(("loss", "probs/", "eval/", "lr")):
                assert whole[iteration][name] == value, (iteration, name)


def test_two_processes(search, config, tmp_path):
    d2go_train(
        *("MultitaskSearchRunner", config, tmp_path / "run"),
        *("--num-processes", "2", "--dist-backend", "GLOO", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "[3]"),
    )
    records = history(tmp_path / "run")
    assert len(records) == 4
    assert records[3]["probs/cls"] != history(search)[3]["probs/cls"]
    assert (tmp_path / "run" / "report.html").is_file()


def ends_of_two_processes(config, folder, settings):
    """The last checkpoints of four steps in one run, and of a run that went on after two of them."""
    processes = ["--num-processes", "2", "--dist-backend", "GLOO"]
    whole, resumed = folder / "whole", folder / "resumed"
    d2go_train("FBNetV5Runner", config, whole, *processes, *settings)
    resumed.mkdir()
    (resumed / "model_0000001.pth").write_bytes((whole / "model_0000001.pth").read_bytes())
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    d2go_train("FBNetV5Runner", config, resumed, *processes, "--resume", *settings)
    return [torch.load(each / "model_final.pth", weights_only=True) for each in (whole, resumed)]


def test_two_resumed_processes_have_the_same_statistics_and_averages(model_config, tmp_path):
    settings = [
        *("MODEL.META_ARCHITECTURE", "ImageClassifier"),
        *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "[3]", "SOLVER.CHECKPOINT_PERIOD", "2"),
    ]
    ends = ends_of_two_processes(model_config, tmp_path, settings)
    for key in ("model", "ema_state"):
        expected, found = (end[key] for end in ends)
        assert any(name.endswith("running_var") for name in expected)
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.parametrize("kind", list(MODELS))
def test_two_processes_that_train_for_int8_have_the_same_ranges(model_config, kind, tmp_path):
    settings = [
        *("MODEL.META_ARCHITECTURE", kind, "MODEL_EMA.ENABLED", "False"),
        *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[1]", "TEST.FINAL_EVAL", "False"),
    ]
    d2go_train("FBNetV5Runner", model_config, tmp_path / "floats", *settings)
    qat = "QUANTIZATION.QAT."
    settings += [
        *("MODEL.WEIGHTS", str(tmp_path / "floats" / "model_final.pth"), f"{qat}ENABLED", "True"),
        *(f"{qat}START_ITER", "0", f"{qat}ENABLE_OBSERVER_ITER", "0", f"{qat}DISABLE_OBSERVER_ITER", "3"),
        *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "[3]", "SOLVER.CHECKPOINT_PERIOD", "2"),
    ]
    expected, found = (end["model"] for end in ends_of_two_processes(model_config, tmp_path, settings))
    assert any(name.endswith("activation_post_process.min_val") for name in expected)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_scaling_with_the_number_of_processes(d2go):
    from d2go.config import auto_scale_world_size

    from d2go_fbnetv5.engine.validate import scale_to_world_size
    from d2go_fbnetv5.runner import MultitaskSearchRunner

    ours, theirs = get_cfg(), MultitaskSearchRunner.get_default_cfg()
    ours.merge_from_file(str(ROOT / "configs" / "search.yaml"))
    theirs.merge_from_file(str(ROOT / "configs" / "search.yaml"))
    scale_to_world_size(ours, 4)
    auto_scale_world_size(theirs, 4)
    assert theirs.SEARCH.ARCH_WARMUP_ITERS == 25000
    assert theirs.SOLVER.CHECKPOINT_PERIOD == 2000
    ours, theirs = flat(ours), flat(theirs)
    assert {key for key, value in ours.items() if theirs[key] != value} == set()


def test_seed_must_be_given(d2go):
    from d2go_fbnetv5.runner import FBNetV5Runner

    cfg = FBNetV5Runner.get_default_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_scenes_train",), ("digit_scenes_val",)
    with pytest.raises(ValueError, match="SEED is -1, allowed under Detectron2 and D2Go: 0 or more"):
        FBNetV5Runner().build_model(cfg)


def test_a_detector_trains_from_a_front_within_a_budget(search, model_config, tmp_path):
    file = json.loads((search / "topologies.json").read_text())
    topologies = Topology.full(3), Topology([[0, 0, 0, 0]] * 3)
    points = [{"topology": t.to_dict(), "loss": loss} for t, loss in zip(topologies, (0.1, 0.2), strict=True)]
    file["tasks"] = {"det": {"outputs": ["path1"], "front": points}}
    (tmp_path / "front.json").write_text(json.dumps(file))
    costs = block_costs("N", file["size"])
    least, full = (costs.network(topology, ["path1"]) for topology in topologies[::-1])
    config = tmp_path / "budget.yaml"
    for budget, expected in ((full, topologies[0]), (full - 1, topologies[1])):
        options = f"{{TOPOLOGY: {tmp_path}/front.json, BUDGET: {{flops: {budget}}}}}"
        config.write_text(
            f"_BASE_: {model_config}\nMODEL: {{META_ARCHITECTURE: LiteRCNN, FBNETV5: {options}}}\n"
        )
        folder = tmp_path / f"run_{budget}"
        d2go_train(
            "FBNetV5Runner",
            config,
            folder,
            "MODEL.WEIGHTS",
            str(search / "model_final.pth"),
            "SOLVER.MAX_ITER",
            "2",
        )
        topology = json.loads((folder / "network.json").read_text())["topology"]
        assert Topology.from_dict(topology).prune(["path1"]) == expected.prune(["path1"])
    config.write_text(config.read_text().replace(str(full - 1), "9.0"))
    with pytest.raises(
        AssertionError,
        match=f"no network of det costs 9 flops or less, the least is {re.escape(format_least(least))}",
    ):
        d2go_train("FBNetV5Runner", config, tmp_path / "none")


def test_detection_on_a_coco_file_by_d2gos_own_loaders(d2go, tmp_path):
    from detectron2.data.datasets import register_coco_instances

    from d2go_fbnetv5.data import DigitScenes, write_multitask
    from d2go_fbnetv5.runner import FBNetV5Runner

    file = write_multitask(DigitScenes("train", size=96, num_images=4), tmp_path / "data")
    index = json.loads(file.read_text())
    for annotation in index["annotations"]:  # which the multitask format may leave out
        annotation |= {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    file.write_text(json.dumps(index))
    register_coco_instances("coco_scenes", {}, str(file), str(file.parent))
    cfg = FBNetV5Runner.get_default_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "det" / "det_digits.yaml"))
    cfg.MODEL.WEIGHTS = cfg.MODEL.FBNETV5.TOPOLOGY = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("coco_scenes",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    cfg.INPUT.CROP.ENABLED = False
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR = 2, 2, str(tmp_path)
    runner = FBNetV5Runner()
    runner._initialize(cfg)
    model = runner.build_model(cfg)
    runner.do_train(cfg, model, resume=False)
    results = runner.do_test(cfg, model)
    assert set(results) == {"default", "ema"}
    assert "AP" in results["default"]["coco_scenes"]["bbox"]


def test_d2gos_own_runner_reads_our_sets_by_our_mapper(config):
    from d2go.runner import GeneralizedRCNNRunner

    from d2go_fbnetv5.plugins.detectron2 import register_datasets
    from d2go_fbnetv5.runner import FBNetV5Runner

    cfg = FBNetV5Runner.get_default_cfg()
    cfg.merge_from_file(str(config))
    cfg.D2GO_DATA.MAPPER.NAME = "FBNetV5DatasetMapper"
    register_datasets(cfg)
    batch = next(iter(GeneralizedRCNNRunner.build_detection_train_loader(cfg)))
    assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
    for data in batch:
        assert data["image"].shape == (3, 64, 64)
        assert data["sem_seg"].shape == data["instances"].image_size == (64, 64)
        assert torch.equal(data["instances"].gt_boxes.tensor, data["boxes"])
    (data,) = next(iter(GeneralizedRCNNRunner.build_detection_test_loader(cfg, "digit_scenes_val")))
    assert data["class_label"] in range(10)


def metrics_in_table(output: str, task: str) -> dict[str, float]:
    """What D2Go prints at the end, as "default/mIoU" and "ema/mIoU"."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if "|" in line]
    return {f"{row[0]}/{row[3]}": float(row[4]) for row in rows if len(row) == 5 and row[2] == task}


def tagged(metrics: dict[str, float]) -> dict[str, float]:
    """The embedded host's "eval/mIoU" and "eval/ema/mIoU", named in the same way."""
    names = {name: name.removeprefix("eval/") for name in metrics}
    return {n if n.startswith("ema/") else f"default/{n}": metrics[name] for name, n in names.items()}


@pytest.mark.parametrize("kind", list(MODELS))
def test_models_train_from_a_search_and_export(search, model_config, kind, tmp_path):
    settings = ["MODEL.META_ARCHITECTURE", kind, "MODEL.FBNETV5.TOPOLOGY", str(search / "topologies.json")]
    training = ["MODEL.WEIGHTS", str(search / "model_final.pth")]
    if kind == "ImageClassifier":
        training += ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
    folder, exported = tmp_path / "run", tmp_path / "exported"
    output = d2go_train("FBNetV5Runner", model_config, folder, *settings, *training)
    task, metric = MODELS[kind]
    found = metrics_in_table(output, task)
    assert {f"default/{metric}", f"ema/{metric}"} <= set(found)
    described = from_run(folder)
    assert (described.task, len(described.names)) == (task, 11 if kind == "LiteMaskFormer" else 10)
    assert len(described.predict([torch.zeros(3, 64, 64, dtype=torch.uint8)])) == 1
    if kind != "LiteRCNN":  # Detectron2's RPN and RoI heads draw samples of regions in their own way
        embedded = ["--config-file", str(model_config), "--output-dir", str(tmp_path / "embedded")]
        run(["tools/train_net.py"], *embedded, *settings, *training)
        records = history(tmp_path / "embedded")
        final = {name: value for name, value in records[4].items() if name.startswith("eval/")}
        assert_same_training(history(folder), records, ("loss", "lr"), steps=5)
        for name, value in tagged(final).items():
            assert found[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name

    types = ["torchscript", *(["torchscript_int8"] if kind == "LiteRCNN" else [])]
    run(
        d2go_command("exporter"),
        *(
            "--runner",
            f"{RUNNER}FBNetV5Runner",
            "--predictor-types",
            *types,
            "--config-file",
            str(model_config),
        ),
        *("--output-dir", str(exported), "--disable-post-mortem"),
        *(*settings, "MODEL.WEIGHTS", str(folder / "model_final.pth")),
    )
    # Both in processes of their own: the second has nothing but torch and torchvision.
    program = str(Path(__file__).parent / "compare_exported.py")
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    run([program], "eager", str(tmp_path / "cases.pth"), str(model_config), *settings, *weights)
    for kind_of_model in types:
        report = run(
            [program], kind_of_model, str(tmp_path / "cases.pth"), str(exported / kind_of_model / "model.jit")
        )
        assert "compared 2" in report


IN_TORCH_ALONE = """
import sys
import torch, torchvision
network = torch.jit.load(sys.argv[1])
for size in ((64, 64), (70, 101)):
    found = network(torch.randint(0, 256, (3, *size)).float())
    for values in [found] if isinstance(found, torch.Tensor) else found:
        assert values.isfinite().all()
        print("found", *values.shape[-2:])
assert not {name.split(".")[0] for name in sys.modules} & {"d2go", "detectron2", "mobile_cv", "d2go_fbnetv5"}
"""


@pytest.mark.parametrize(
    ("kind", "options", "metrics"),
    [
        ("LiteDepth", "TOPOLOGY_TASK: seg", {"depth": "RMSE"}),
        (
            "SeveralHeads",
            "HEAD: {heads: {cls: {}, det: {}, seg: {num_queries: 4}}}",
            {"cls": "top1", "det": "AP", "seg": "mIoU"},
        ),
    ],
)
def test_depth_and_several_heads_are_trained_judged_and_exported(
    search, model_config, tmp_path, kind, options, metrics
):
    config, folder = tmp_path / "model.yaml", tmp_path / "run"
    fbnetv5 = f"{{TOPOLOGY: {search}/topologies.json, {options}}}"
    config.write_text(f"_BASE_: {model_config}\nMODEL: {{META_ARCHITECTURE: {kind}, FBNETV5: {fbnetv5}}}\n")
    weights = ["MODEL.WEIGHTS", str(search / "model_final.pth")]
    output = d2go_train(
        "FBNetV5Runner", config, folder, *weights, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[1]"
    )
    for task, metric in metrics.items():
        assert {f"default/{metric}", f"ema/{metric}"} <= set(metrics_in_table(output, task))
    run(
        d2go_command("exporter"),
        *("--runner", f"{RUNNER}FBNetV5Runner", "--predictor-types", "torchscript", "--disable-post-mortem"),
        *("--config-file", str(config), "--output-dir", str(tmp_path / "exported")),
        *("MODEL.WEIGHTS", str(folder / "model_final.pth")),
    )
    found = run(["-c", IN_TORCH_ALONE], str(tmp_path / "exported" / "torchscript" / "model.jit"))
    assert "found 70 101" in found
