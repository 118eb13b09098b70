"""LiteDepth from the command line: a folder like NYU Depth v2's is trained on, shown and exported."""

import json

import numpy as np
import pytest
from d2go_fbnetv5.tools import export, predict
from d2go_fbnetv5.tools.train_net import main

from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.data.images import encode_png, read_image
from d2go_fbnetv5.engine.config import find_config

CONFIG = """
_BASE_: {base}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {{SIZE: [64, 64]}}}}
MODEL: {{DEVICE: cpu, FBNETV5: {{FAMILY: N, HEAD: {{dim: 16}}}}}}
FBNETV5_DATA:
  DATASETS:
    nyu_train: {{READER: nyu_depth_v2, root: {root}, split: train}}
    nyu_test: {{READER: nyu_depth_v2, root: {root}, split: test}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 4, WARMUP_ITERS: 1, CHECKPOINT_PERIOD: 4}}
TEST: {{EVAL_PERIOD: 0}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four iterations on scenes whose depth is kept as millimetres."""
    tmp_path = tmp_path_factory.mktemp("depth")
    for folder, split, count in (("sync/room", "train", 8), ("official_splits/test/room", "val", 3)):
        (tmp_path / folder).mkdir(parents=True)
        scenes = DigitScenes(split, size=(64, 96), num_images=count)
        for i in range(count):
            sample = scenes[i]
            depth = (4000 * sample["depth"].numpy()).astype(np.uint16)
            depth[:4] = 0  # where the sensor has seen nothing
            image = sample["image"].permute(1, 2, 0).numpy()
            (tmp_path / folder / f"rgb_{i:05d}.png").write_bytes(encode_png(image))
            (tmp_path / folder / f"sync_depth_{i:05d}.png").write_bytes(encode_png(depth))
    config = tmp_path / "depth.yaml"
    config.write_text(CONFIG.format(base=find_config("depth/nyu_depth_v2.yaml"), root=tmp_path))
    assert main(["--config-file", str(config), "--output-dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_depth_is_trained_and_shown(run, tmp_path):
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert 0 < last["eval/AbsRel"] < 1 and 0 <= last["eval/delta1"] <= 1 and last["eval/RMSE"] > 0
    image = run.parent / "sync/room/rgb_00000.png"
    shown = tmp_path / "shown"
    assert predict.main([str(image), "--run", str(run), "--output", str(shown)]) == 0
    (entry,) = json.loads((shown / "predictions.json").read_text())
    assert entry["depth"]["unit"] == "metres" and 0 < entry["depth"]["least"] <= entry["depth"]["most"]
    assert read_image(shown / entry["picture_file_name"]).shape == (3, 64, 96)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_depth_is_exported_with_its_unit(run, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    assert export.main(["--run", str(run), "--format", format, "--output", str(tmp_path)]) == 0
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["unit"] == "metres" and [o["name"] for o in described["outputs"]] == ["depth"]
