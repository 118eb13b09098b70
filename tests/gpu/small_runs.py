"""Runs of a few steps on a device, for what computes them on a GPU, or on one that is not there, and on a CPU."""

import torch

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.train import Run, prepare

SEARCH = ["SEARCH.EVAL.BN_ITERS", "1", "SEARCH.EVAL.RANDOM_TOPOLOGIES", "0", "SEARCH.ARCH_WARMUP_ITERS", "1"]
SEARCH += ["SEARCH.EVAL.CANDIDATES", "4"]
RUNS = {
    "search": ("search_digits_scratch.yaml", SEARCH),
    "cls": ("cls/cls_digits.yaml", []),
    "det": ("det/det_digits.yaml", []),
    "seg": ("seg/seg_digits.yaml", []),
}
HALF = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION"]
PRECISIONS = {
    "float32": ["FLOAT32_PRECISION", "highest"],
    "TF32": ["FLOAT32_PRECISION", "high"],
    "float16": [*HALF, "float16"],
    "bfloat16": [*HALF, "bfloat16"],
}


def small_run(name, device, folder, options=(), steps=2, resume=False, world_size=1):
    """A run of one of RUNS, built and not yet trained; `options` are KEY VALUE pairs over the few steps' own."""
    config, of_its_kind = RUNS[name]
    few = {
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": [1],
        "SOLVER.WARMUP_ITERS": 1,
        "SOLVER.CHECKPOINT_PERIOD": max(1, steps // 2),
        "MODEL.WEIGHTS": "",
        "MODEL.FBNETV5.TOPOLOGY": "",
        "MODEL.DEVICE": device,
        "OUTPUT_DIR": folder,
        "FBNETV5_DATA.DATASETS.digit_scenes_train.num_images": 16,
        "FBNETV5_DATA.DATASETS.digit_scenes_val.num_images": 8,
    }
    opts = [str(part) for pair in few.items() for part in pair]
    run = Run(
        prepare(load_cfg(config, [*opts, *of_its_kind, *options]), world_size, resume=resume), resume=resume
    )
    assert next(run.model.parameters()).device.type == torch.device(device).type
    return run
