"""The train_net command with a tiny model and data set: a script, so that tests can kill it.

STUB_KILL=iteration:rank sends this process SIGKILL in that step, between its forward and its backward pass.
"""

import os
import signal
import sys

import torch
from d2go_fbnetv5.tools.train_net import main
from torch import nn

from d2go_fbnetv5.data import register_dataset
from d2go_fbnetv5.engine.recipes.base import Recipe, register_recipe
from d2go_fbnetv5.tasks import DatasetInfo
from d2go_fbnetv5.utils.ranks import rank


class StubSet:
    info = DatasetInfo(class_names=("dark", "bright"))

    def __init__(self, num_images):
        self.num_images = num_images

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        bright = index % 2
        image = (
            torch.randint(0, 128, (3, 8, 8), generator=torch.Generator().manual_seed(index)) + 100 * bright
        )
        return {
            "image": image.to(torch.uint8),
            "class_label": bright,
            "image_id": index,
            "height": 8,
            "width": 8,
        }


@register_dataset("stub_set")
def stub_set(num_images: int = 24):
    return StubSet(num_images)


class Accuracy:
    def reset(self):
        self.right = []

    def process(self, inputs, outputs):
        self.right += [float(o["label"] == i["class_label"]) for i, o in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        return {"top1": sum(self.right) / max(len(self.right), 1)}


class StubModel(nn.Module):
    """Batch norm, dropout and a linear layer; `nan_at` makes that step's loss NaN."""

    def __init__(self, nan_at=-1):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(3, 2)
        self.nan_at = nan_at
        self.register_buffer("step_count", torch.zeros((), dtype=torch.long))
        self.diagnostics = {}

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch]).float() / 255
        logits = self.fc(self.drop(self.norm(images)).mean(dim=(2, 3)))
        if not self.training:
            return [{"label": row.argmax()} for row in logits]
        step = int(self.step_count)
        self.step_count += 1
        if os.environ.get("STUB_KILL") == f"{step}:{os.environ.get('RANK', 0)}":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STUB_BUG") == f"{step}:{os.environ.get('RANK', 0)}":
            raise KeyError("a bug")
        labels = torch.tensor([sample["class_label"] for sample in batch])
        loss = nn.functional.cross_entropy(logits, labels)
        self.diagnostics = {"entropy": loss.detach(), "topologies": [f"t{step}"]}
        return {"loss_cls": loss * float("nan") if step == self.nan_at else loss}

    def evaluator(self, info):
        return Accuracy()


@register_recipe("Stub")
class StubRecipe(Recipe):
    def build_model(self):
        return StubModel(int(os.environ.get("STUB_NAN", -1)))

    def conclude(self, trained):
        metrics = super().conclude(trained)
        torch.save(trained.averaged.state_dict(), trained.output_dir / f"ema_of_rank{rank()}.pth")
        return metrics


CONFIG = """
MODEL: {META_ARCHITECTURE: Stub, DEVICE: cpu, PIXEL_STD: [50.0, 50.0, 50.0]}
INPUT: {FORMAT: RGB, MIN_SIZE_TRAIN: [8], MIN_SIZE_TEST: 8}
DATASETS: {TRAIN: [stub_set], TEST: [stub_set]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 4, BASE_LR: 0.1, WARMUP_ITERS: 2, MAX_ITER: 12, STEPS: [8], CHECKPOINT_PERIOD: 3}
MODEL_EMA: {ENABLED: True, DECAY: 0.9}
WRITER_PERIOD: 1
SEED: 3
"""

if __name__ == "__main__":
    sys.exit(main())
