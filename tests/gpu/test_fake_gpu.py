"""The project on a GPU that is not there: what only a GPU would find is where tensors are, and when they arrive."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14),
        reason="the fake is a backend in Python, which older versions of torch have not, or in part",
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
]


EVALUATION = """
import fake_accelerator, torch
from torch import nn
fake_accelerator.enable()
from d2go_fbnetv5.engine.evaluation import evaluate

class Net(nn.Linear):
    def forward(self, batch):
        return [{"scores": super(Net, self).forward(sample["image"])} for sample in batch]

class Scores:
    def reset(self): self.found = []
    def process(self, batch, outputs): self.found += [output["scores"].tolist() for output in outputs]
    def evaluate(self): return self.found

net = Net(2, 1)
batches = [[{"image": torch.tensor([1.0, 2.0])}, {"image": torch.tensor([3.0, 4.0])}]]
expected = evaluate(net, batches, Scores())
assert evaluate(net.to("cuda"), batches, Scores()) == expected
assert not fake_accelerator.races
"""


# Batches of other sizes, types and places than one block of uint8; a pinned block is not a copy that is waited for.
UPLOADS = """
import fake_accelerator, torch
fake_accelerator.enable()
from d2go_fbnetv5.engine.loop import images_to_device
bytes_ = (255 * torch.rand(3, 2, 7)).byte()
images = [torch.rand(3, 4, 5), bytes_, torch.rand(1, 1, 1).cuda(), torch.rand(3, 6, 6)[:, ::2]]
batch = [*({"image": image, "class_label": 1} for image in images), {"class_label": 2}]
fake_accelerator.waits.clear()
moved = images_to_device(batch, torch.device("cuda"))
assert not fake_accelerator.waits, fake_accelerator.waits
for sample, image in zip(moved, images):
    assert sample["image"].is_cuda and sample["image"].shape == image.shape and sample["image"].dtype == image.dtype
    assert torch.equal(sample["image"].cpu(), image.cpu()) and sample["class_label"] == 1
assert moved[4] == {"class_label": 2} and batch[0]["image"] is images[0]
"""


# float16 overflows in the second of three steps, which the scaler leaves out.
SKIPPED = """
import copy, fake_accelerator, torch
fake_accelerator.enable()
from waits_of_a_step import MODELS, samples
from d2go_fbnetv5.engine.ema import EMA, EMAHook
from d2go_fbnetv5.engine.hooks import AfterStepHook, ScheduleHook
from d2go_fbnetv5.engine.loop import Hook, TrainLoop
from d2go_fbnetv5.engine.precision import Precision
from d2go_fbnetv5.engine.schedule import build_schedule

torch.manual_seed(0)
search = MODELS["search"]().to("cuda")
first = next(search.supernet.parameters())
first.register_hook(lambda g: g * float("inf") if search.iteration == 2 else g)
optimizer = torch.optim.SGD(search.param_groups(0.1, arch_lr_factor=0.01), lr=0.1, momentum=0.9)
rates = [group["lr"] for group in optimizer.param_groups]
schedule = ScheduleHook(build_schedule("WarmupCosineLR", 3), rates)
ema, precision, seen = EMA(search, 0.5), Precision("cuda", "float16"), []

def values(module):
    return {name: value.cpu() for name, value in module.named_parameters()}

class Look(Hook):
    def after_step(self, loop):
        momenta = [state["momentum_buffer"].cpu() for state in optimizer.state.values() if "momentum_buffer" in state]
        seen.append((values(search), values(ema.module), precision.scaler.get_scale(), optimizer.param_groups[0]["lr"],
                     search.iteration, int(search.iteration_count), momenta))

hooks = [schedule, AfterStepHook(), EMAHook(ema), Look()]
TrainLoop(search, optimizer, iter(samples, None), 3, hooks=hooks, device="cuda", precision=precision).run()
before, skipped, after = seen
assert all(torch.equal(value, before[0][name]) for name, value in skipped[0].items())  # probabilities as well
assert all(map(torch.equal, before[6], skipped[6]))
for name, value in skipped[1].items():
    torch.testing.assert_close(value, (before[1][name] + before[0][name]) / 2, rtol=1e-6, atol=1e-7)
assert (skipped[2], after[2]) == (before[2] / 2, before[2] / 2)
assert before[3] > skipped[3] > after[3]
assert [one[4] for one in seen] == [one[5] for one in seen] == [1, 2, 3]
changed = [name for name, value in after[0].items() if not torch.equal(value, skipped[0][name])]
assert first.isfinite().all() and "distribution.probs" in changed and len(changed) > 50
"""


def run(*command, timeout=60):
    # In a process of its own, for the fake cannot be taken out again.
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_evaluation_waits_for_the_predictions():
    run("-c", EVALUATION)


def test_images_of_all_kinds_go_over_without_a_wait():
    run("-c", UPLOADS)


def test_a_step_that_float16_overflows_in_changes_no_weight_and_no_count_is_lost():
    run("-c", SKIPPED, timeout=120)


@pytest.mark.slow
def test_half_precision_stays_half_and_finite_and_matches_as_float32_does(tmp_path):
    run(HERE / "half_precision.py", tmp_path / "half.json", timeout=1800)
    found = json.loads((tmp_path / "half.json").read_text())
    for name in ("float16", "bfloat16"):
        assert found[name]["features"] == [f"torch.{name}"] * 8
        assert found[name]["matches"] == found["float32"]["matches"]
        assert found[name]["finite"] == {
            "multitask": 8,
            "shared_forward": 8,
            "LiteMaskFormer": 4,
            "LiteRCNN": 1,
        }


# torchvision's detector, of which a line stands for each of its operators that tell the host how many boxes there are.
OF_TORCHVISION = {"detection/_utils.py", "detection/rpn.py", "detection/roi_heads.py", "ops/boxes.py"}
ALLOWED = {
    "search": {"search/distribution.py": 1},  # the probabilities, from which the host samples
    "search, shared images": {"search/distribution.py": 1},
    "search, straight-through": {"search/distribution.py": 1},
    "search, bfloat16, clipped": {"search/distribution.py": 1},
    "search, detector": {"search/distribution.py": 1},
    "ImageClassifier": {},
    "LiteRCNN": {
        "models/roi_head.py": 5
    },  # which regions are sampled, of each of 4 images, and which are objects
    "LiteMaskFormer": {"models/maskformer_loss.py": 1},  # the costs, which the host matches by
    "LiteMaskFormer, bfloat16, clipped": {"models/maskformer_loss.py": 1},
}


@pytest.mark.slow
def test_a_step_waits_for_a_gpu_no_more_often_than_it_has_to(tmp_path):
    run(HERE / "waits_of_a_step.py", tmp_path / "waits.json", timeout=1800)
    found = json.loads((tmp_path / "waits.json").read_text())
    assert found.keys() == ALLOWED.keys()
    for name, places in found.items():
        ours = {}
        for place, times in places.items():
            *_, asked = place.split(" via ")
            if not any(part in asked for part in OF_TORCHVISION):
                file = asked.split(":")[0]
                ours[file] = ours.get(file, 0) + times
        assert ours == ALLOWED[name], name


@pytest.mark.slow
def test_runs_on_a_gpu_end_with_the_numbers_of_the_cpu(tmp_path):
    run(HERE / "runs_on_both.py", tmp_path, timeout=1800)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["races"] == {}
    assert found["cpu"].keys() == found["cuda"].keys() == {"search", "cls", "det", "seg"}
    for name, cpu in found["cpu"].items():
        gpu = found["cuda"][name]
        # Attention takes another kernel there.
        assert gpu["weights"] == pytest.approx(cpu["weights"], rel=1e-9)
        # There are no large objects to be found, and so no APl.
        assert gpu["metrics"] == pytest.approx(cpu["metrics"], abs=1e-6, nan_ok=True)
        assert any(value > 0 for value in cpu["metrics"].values())
    # Autocast was on, and the weights stayed numbers.
    assert 0 < found["half"] < float("inf")
    assert found["half"] != found["cuda"]["search"]["weights"]
