"""A script that trains two steps of the search and of each model and evaluates them, on the CPU and on a fake GPU.

    python runs_on_both.py FOLDER

Writes FOLDER/found.json: what came out of each by the name of the device, and what was read too early.
"""

import json
import sys

import torch
from fake_accelerator import enable, races

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare

SEARCH = ["SEARCH.EVAL.BN_ITERS", "1", "SEARCH.EVAL.RANDOM_TOPOLOGIES", "0", "SEARCH.ARCH_WARMUP_ITERS", "1"]
HALF = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"]
RUNS = {
    "search": ("search_digits_scratch.yaml", SEARCH),
    "cls": ("cls/cls_digits.yaml", []),
    "det": ("det/det_digits.yaml", []),
    "seg": ("seg/seg_digits.yaml", []),
}


def train_and_evaluate(config, options, device, folder):
    few = {
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": [1],
        "SOLVER.WARMUP_ITERS": 1,
        "MODEL.WEIGHTS": "",
        "MODEL.FBNETV5.TOPOLOGY": "",
        "MODEL.DEVICE": device,
        "OUTPUT_DIR": folder,
        "FBNETV5_DATA.DATASETS.digit_scenes_train.num_images": 16,
        "FBNETV5_DATA.DATASETS.digit_scenes_val.num_images": 8,
    }
    opts = [str(part) for pair in few.items() for part in pair]
    run = Run(prepare(load_cfg(config, [*opts, *options]), 1))
    assert next(run.model.parameters()).device.type == device
    run.train()
    weights = sum(float(weight.detach().double().abs().sum()) for weight in run.model.parameters())
    return {"weights": weights, "metrics": run.conclude()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    enable()
    folder = sys.argv[1]
    found = {
        device: {name: train_and_evaluate(*RUNS[name], device, f"{folder}/{device}-{name}") for name in RUNS}
        for device in ("cpu", "cuda")
    }
    config, options = RUNS["search"]
    half = train_and_evaluate(config, options + HALF, "cuda", f"{folder}/half")
    found |= {"half": half["weights"], "races": dict(races)}
    with open(f"{folder}/found.json", "w") as file:
        json.dump(found, file)
