"""A script that trains two steps of the search and of each model and evaluates them, on the CPU and on a fake GPU.

    python runs_on_both.py FOLDER

Writes FOLDER/found.json: what came out of each by the name of the device, and what was read too early.
"""

import json
import sys

import torch
from fake_accelerator import enable, races
from small_runs import PRECISIONS, RUNS, small_run


def train_and_evaluate(name, device, folder, options=()):
    run = small_run(name, device, folder, options)
    run.train()
    weights = sum(float(weight.detach().double().abs().sum()) for weight in run.model.parameters())
    return {"weights": weights, "metrics": run.conclude()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    enable()
    folder = sys.argv[1]
    found = {
        device: {name: train_and_evaluate(name, device, f"{folder}/{device}-{name}") for name in RUNS}
        for device in ("cpu", "cuda")
    }
    half = train_and_evaluate("search", "cuda", f"{folder}/half", PRECISIONS["bfloat16"])
    found |= {"half": half["weights"], "races": dict(races)}
    with open(f"{folder}/found.json", "w") as file:
        json.dump(found, file)
