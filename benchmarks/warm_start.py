"""What a search gains from timm's weights: the classification loss of its first steps, from them and from nothing.

    python benchmarks/warm_start.py [--train-steps 80] [--steps 6] [--seeds 3]

timm's FBNetV3-B with random weights learns a few images of a digit each by heart, its weights go through
`convert_weights`, and short searches on these images start from them, with a new head and with its own, and from
nothing. So it shows what of a network's knowledge a search begins with, and not how well that network does on other
images. The searches of a seed see the same batches and topologies, and new heads of a seed are the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from common import finish, mean_and_spread, parser, run_folder
from d2go_fbnetv5.tools import convert_weights
from torch.nn import functional as F

from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare
from d2go_fbnetv5.reports.history import read_history, series
from d2go_fbnetv5.utils.checkpoints import read_tensors, save_tensors

SIDE, BATCH, FAMILY, STAGES = 64, 16, "B_TIMM", 2
IMAGES = {"size": SIDE, "num_images": 64, "max_digits": 1}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def as_batch(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return N x 3 x H x W normalised images and N labels."""
    images = torch.stack([sample["image"] for sample in samples]).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std, torch.tensor([sample["class_label"] for sample in samples])


def train_timm(path: Path, steps: int) -> float:
    """Train timm's model and write its state; return its mean loss in its last epoch."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("fbnetv3_b", num_classes=10)
    torch.nn.init.normal_(model.classifier.weight, std=0.01)  # timm's first one is for a thousand classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    images, labels = as_batch(list(DigitScenes("train", **IMAGES)))
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.0005 * (1 + math.cos(math.pi * step / steps))
        if step % (len(images) // BATCH) == 0:
            parts = torch.randperm(len(images)).split(BATCH)
        part = parts[step % len(parts)]
        loss = F.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"timm: step {step + 1}, loss {loss.item():.3f}", flush=True)
    save_tensors(path, model.state_dict())
    last = losses[-len(parts) :]
    return sum(last) / len(last)


def search(folder: Path, weights: str, seed: int, steps: int) -> list[float]:
    """Return the classification loss of each step of a search."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_BASE_": "search.yaml",
        "MODEL": {"DEVICE": "cpu", "WEIGHTS": weights, "FBNETV5": {"FAMILY": FAMILY, "NUM_STAGES": STAGES}},
        "SEARCH": {"TASKS": ["cls"], "ARCH_WARMUP_ITERS": steps, "COST": {"SIZE": [SIDE, SIDE]}},
        "INPUT": {"MIN_SIZE_TRAIN": [SIDE], "RANDOM_FLIP": "none", "CROP": {"SIZE": [SIDE, SIDE]}},
        "FBNETV5_DATA": {"DATASETS": {"digit_scenes_train": dict(IMAGES)}},
        "DATASETS": {"TRAIN": ["digit_scenes_train"], "TEST": ["digit_scenes_val"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {
            "IMS_PER_BATCH": BATCH,
            "REFERENCE_WORLD_SIZE": 0,
            "BASE_LR": 0.05,
            "MAX_ITER": steps,
            "STEPS": [steps],
        },
        "WRITER_PERIOD": 1,
        "SEED": seed,
        "OUTPUT_DIR": str(folder / "run"),
    }
    path = folder / "warm_start.yaml"
    path.write_text(yaml.safe_dump(config))
    run = Run(prepare(load_cfg(path), 1, resume=True), resume=True)
    run.train()
    run.close()
    return series(read_history(folder / "run"), "task_loss/cls")[1]


def main() -> None:
    arguments = parser(__doc__, "output/benchmarks/warm_start.json")
    arguments.add_argument("--train-steps", type=int, default=80, help="of timm's model")
    arguments.add_argument("--steps", type=int, default=6, help="of each search")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help="of the runs")
    args = arguments.parse_args()
    if args.quick:
        args.train_steps, args.steps, args.seeds = 2, 2, 1
    torch.set_num_threads(args.threads)
    folder = run_folder(args, "warm_start", ("train_steps", "steps"))
    state, whole, bare = (folder / name for name in ("timm.pth", "whole.pth", "bare.pth"))
    trained = train_timm(state, args.train_steps)
    convert_weights.main([str(state), str(whole), "--family", FAMILY, "--stages", str(STAGES)])
    weights = read_tensors(whole)["model"]
    save_tensors(bare, {name: value for name, value in weights.items() if name.startswith("supernet.")})
    rows = []
    last = min(3, args.steps)
    for start, path in (
        ("nothing", ""),
        ("its weights, a new head", str(bare)),
        ("its weights and head", str(whole)),
    ):
        losses = [search(folder / f"{start} {seed}", path, seed, args.steps) for seed in range(args.seeds)]
        row = {"a search from": start, "first step": mean_and_spread([each[0] for each in losses])}
        row[f"steps {args.steps - last + 1} to {args.steps}"] = mean_and_spread(
            [sum(each[-last:]) / last for each in losses]
        )
        rows.append(row)
    title = f"Classification loss of searches; timm's model ended with {trained:.3f}, by chance it is 2.303"
    finish(args.output, {title: (rows, list(rows[0]))}, trained=trained)


if __name__ == "__main__":
    main()
