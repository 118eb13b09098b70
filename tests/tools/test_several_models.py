"""SeveralHeads from the command line: one network is trained on scenes, shown, shared and exported to one file."""

import json
import re
from pathlib import Path

import pytest
import torch
from d2go_fbnetv5.tools import export, predict
from d2go_fbnetv5.tools.train_net import main

from d2go_fbnetv5 import create_model, save_pretrained
from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.data.images import encode_png, read_image
from d2go_fbnetv5.engine.config import find_config, load_cfg
from d2go_fbnetv5.engine.recipes.models import class_names, searched_topology
from d2go_fbnetv5.engine.train import prepare
from d2go_fbnetv5.tasks.base import DatasetInfo

CONFIG = """
_BASE_: {base}
INPUT: {{MIN_SIZE_TRAIN: [96], MIN_SIZE_TEST: 96, CROP: {{SIZE: [96, 96]}}}}
MODEL:
  WEIGHTS: ""
  FBNETV5:
    TOPOLOGY: {topology}
    HEAD:
      heads:
        seg: {{num_queries: 6, dim: 32, num_heads: 4, feedforward_dim: 32}}
        depth: {{dim: 16}}
FBNETV5_DATA:
  DATASETS: {{digit_scenes_train: {{size: 96, num_images: 64}}, digit_scenes_val: {{size: 96, num_images: 5}}}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 4, WARMUP_ITERS: 1, CHECKPOINT_PERIOD: 2}}
"""
FOUND = {
    "cls": Topology([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]),
    "det": Topology([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "seg": Topology([[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]),
    "depth": Topology([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]),
}


@pytest.fixture
def config(tmp_path):
    outputs = {"cls": ["path3"], "det": ["path1"], "seg": ["path1", "path3"], "depth": ["path1"]}
    entries = {task: {"topology": FOUND[task], "outputs": paths} for task, paths in outputs.items()}
    save_topologies(tmp_path / "topologies.json", "N", 3, (96, 96), entries)
    path = tmp_path / "several.yaml"
    base = find_config("several/several_digits.yaml")
    path.write_text(CONFIG.format(base=base, topology=tmp_path / "topologies.json"))
    return path


def cfg_of(config, *options):
    return load_cfg(str(config), ["MODEL.DEVICE", "cpu", *map(str, options)])


def test_the_topology_is_that_of_a_named_task_or_the_union_of_the_heads(config):
    union = searched_topology(cfg_of(config))
    # Of det's the block of Path 3 reaches nothing, of depth's that of Path 0.
    expected = [[1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]]
    assert union == Topology(expected)
    one = searched_topology(cfg_of(config, "MODEL.FBNETV5.TOPOLOGY_TASK", "seg"))
    assert one == FOUND["seg"]
    two = searched_topology(cfg_of(config, "MODEL.FBNETV5.TOPOLOGY_TASK", "det+seg"))
    assert two == Topology([[0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.FBNETV5.TOPOLOGY_TASK", "cls+pose"], "no task 'pose'; available: cls, det, seg, depth"),
        (["MODEL.FBNETV5.BUDGET", "{flops: 9.0e+6}"], "a budget for the networks of cls, det, seg, depth"),
        (["MODEL.FBNETV5.HEAD", "{}"], "MODEL.FBNETV5.HEAD.* missing a required argument: 'heads'"),
        (["MODEL.FBNETV5.HEAD", "{heads: {}}"], "MODEL.FBNETV5.HEAD: option 'heads' is empty; allowed"),
        (["MODEL.FBNETV5.HEAD", "{heads: {pose: {}}}"], "MODEL.FBNETV5.HEAD: option 'heads' has 'pose'"),
        (["MODEL.FBNETV5.HEAD", "{heads: [cls, det]}"], "option 'heads' of MODEL.FBNETV5.HEAD is .*a group"),
    ],
)
def test_what_is_no_several_heads_is_refused_before_anything_is_opened(config, options, message, tmp_path):
    plain = tmp_path / "plain.yaml"
    text = config.read_text()
    if options[0] == "MODEL.FBNETV5.HEAD":  # a group is merged into its base's
        text = text[: text.index("    HEAD:")] + text[text.index("FBNETV5_DATA:") :]
        text = text.replace("several/several_digits.yaml", "_base_digits.yaml")
        text = text.replace("MODEL:\n", "MODEL:\n  META_ARCHITECTURE: SeveralHeads\n")
    plain.write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(cfg_of(plain, *options, "OUTPUT_DIR", tmp_path / "run"), 1)


def test_a_data_set_must_name_what_each_head_learns(config):
    cfg, info = cfg_of(config), DigitScenes().info
    assert class_names(cfg, info)["depth"] == ("relative",)
    flat = DatasetInfo(info.class_names, info.box_names, info.sem_seg_names)
    with pytest.raises(ValueError, match="DATASETS.TRAIN .*: no depth_units, which SeveralHeads learns"):
        class_names(cfg, flat)


def test_several_heads_come_by_name(tmp_path):
    model = create_model("FBNetV5-N-CLS+DEPTH", {"cls": 7}, heads={"depth": {"dim": 8}}).eval()
    assert list(model.heads) == ["cls", "depth"] and model.num_classes == {"cls": 7, "depth": 1}
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "image_id": 0}])
    assert found["class_scores"].shape == (7,) and found["depth"].shape == (64, 64)
    for name, classes, message in (
        ("FBNetV5-N-CLS+CLS", None, "unknown model"),
        ("FBNetV5-N-CLS+DET", 7, "num_classes is 7; allowed is numbers by some of cls, det"),
        ("FBNetV5-N-CLS+DET", {"seg": 7}, "num_classes is .*; allowed is numbers by some of cls, det"),
        ("FBNetV5-N-CLS", {"cls": 7}, "num_classes is .*; allowed is 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            create_model(name, classes)


@pytest.fixture
def run(config, tmp_path):
    assert main(["--config-file", str(config), "--output-dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_one_network_is_trained_resumed_shown_and_shared(config, run, tmp_path, capsys):
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert {"eval/cls/top1", "eval/det/AP", "eval/seg/mIoU", "eval/depth/AbsRel", "eval/ema/cls/top1"} <= set(
        last
    )
    cut = tmp_path / "cut"
    cut.mkdir()
    whole = tmp_path / "whole"
    arguments = ["--config-file", str(config), "--output-dir", str(whole), "SOLVER.CHECKPOINT_KEEP", "9"]
    assert main(arguments) == 0
    (cut / "model_0000001.pth").write_bytes((whole / "model_0000001.pth").read_bytes())
    (cut / "last_checkpoint").write_text("model_0000001.pth")
    assert main(["--config-file", str(config), "--output-dir", str(cut), "--resume"]) == 0
    ends = [torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (run, cut)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    image = tmp_path / "scene.png"
    image.write_bytes(encode_png(DigitScenes("val", size=(96, 128))[0]["image"].permute(1, 2, 0).numpy()))
    (tmp_path / "topologies.json").unlink()
    shared = save_pretrained(run, tmp_path / "shared")
    for folder in (run, shared):
        shown = tmp_path / "shown" / folder.name
        assert (
            predict.main([str(image), "--run", str(folder), "--output", str(shown), "--threshold", "0"]) == 0
        )
        (entry,) = json.loads((shown / "predictions.json").read_text())
        assert {"classes", "boxes", "sem_seg", "depth", "sem_seg_file_name"} <= set(entry)
        assert read_image(shown / entry["picture_file_name"]).shape == (3, 96, 4 * 128)


@pytest.mark.slow
def test_the_program_of_the_page_reads_all_outputs(run, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    output = tmp_path / "output" / "several_digits" / "onnx"
    assert export.main(["--run", str(run), "--format", "onnx", "--output", str(output)]) == 0
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```py\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(program, scope)
    assert scope["best"] in map(str, range(10)) and scope["pixels"].shape == (96, 128)
    assert len(scope["boxes"]) == len(scope["objects"]) and scope["pixels"].max() < 11


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torchscript", "onnx", "executorch"])
def test_one_file_has_all_outputs(run, tmp_path, format):
    for package in {"torchscript": (), "onnx": ("onnx", "onnxruntime"), "executorch": ("executorch",)}[
        format
    ]:
        pytest.importorskip(package)
    folder = tmp_path / format
    assert export.main(["--run", str(run), "--format", format, "--output", str(folder)]) == 0
    described = json.loads((folder / "model.json").read_text())
    names = [output["name"] for output in described["outputs"]]
    detections = ["det_boxes", "det_scores", "det_labels"]
    assert names == [*detections, "cls_scores", "seg_classes", "seg_masks", "depth"]
    assert described["task"] == "cls+det+seg+depth" and len(described["check"]["sizes"]) == 2
    assert described["unit"] == "relative" and list(described["classes"]) == ["cls", "det", "seg"]
    if format == "executorch":
        assert list(described["methods"]["proposals"]["outputs"])[3:] == names[3:]
