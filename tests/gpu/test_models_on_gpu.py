"""The three models on a GPU: training in all precisions, predictions equal to the CPU's, export."""

import pytest
import torch
from small_runs import PRECISIONS, small_run

from d2go_fbnetv5.engine.evaluation import evaluate
from d2go_fbnetv5.engine.validate import check_device
from d2go_fbnetv5.export import export_model
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.zoo import create_model

# What torch says of kernels on a GPU is no error of ours.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

TASKS = ("cls", "det", "seg")


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before


class Kept:
    """An evaluator that keeps what it is given, at once."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [{key: value.clone() for key, value in output.items()} for output in outputs]

    def evaluate(self):
        return {}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_trains_and_is_judged_in_every_precision(task, precision, device, tmp_path):
    run = small_run(task, device, tmp_path, PRECISIONS[precision], steps=4)
    run.train()
    assert all(bool(torch.isfinite(weight).all()) for weight in run.model.parameters())
    assert run.conclude()


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_sees_what_the_cpu_predicts(task, device, record_property):
    torch.manual_seed(0)
    model = create_model(f"FBNetV5-N-{task.upper()}", num_classes=5).eval()
    if task == "det":
        model.roi_head.score_threshold = 0.0
    batches = [
        [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "image_id": i} for i in range(16)]
        for _ in range(4)
    ]
    here, there = Kept(), Kept()
    evaluate(model, batches, here)
    evaluate(model.to(device), batches, there)
    assert len(here.seen) == len(there.seen) == 64
    key = {"cls": "class_scores", "det": "scores", "seg": "sem_seg"}[task]
    if task == "seg":
        agreement = [
            float((a[key] == b[key]).float().mean()) for a, b in zip(here.seen, there.seen, strict=True)
        ]
        record_property("pixels equal", sum(agreement) / len(agreement))
        assert min(agreement) > 0.98
    else:
        # Boxes of nearly equal scores may change places.
        apart = [
            float((a[key].sort().values[-50:] - b[key].sort().values[-50:]).abs().max())
            for a, b in zip(here.seen, there.seen, strict=True)
        ]
        record_property("greatest difference", max(apart))
        assert max(apart) < 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_a_model_on_the_device_is_exported(task, device, tmp_path):
    model = create_model(f"FBNetV5-N-{task.upper()}", num_classes=5).to(device)
    if task == "det":
        model.roi_head.score_threshold = (
            0.5  # boxes that a detector scores alike without training may change places
        )
    exported = export_model(model, "torchscript", tmp_path)
    assert exported.path.is_file()
    assert next(model.parameters()).device.type == device  # the model itself stays where it is


def test_devices_that_are_not_there_are_refused(device):
    if device == "cuda":
        count = torch.cuda.device_count()
        check_device("MODEL.DEVICE", f"cuda:{count - 1}")
        with pytest.raises(InputError, match=f"MODEL.DEVICE is 'cuda:{count}', allowed: cuda, cuda:0 to"):
            check_device("MODEL.DEVICE", f"cuda:{count}")
        with pytest.raises(InputError, match="allowed for 2 processes: cuda"):
            check_device("MODEL.DEVICE", "cuda:0", 2)
    check_device("MODEL.DEVICE", device)
