"""One process by NCCL and two by gloo, which can share a GPU."""

import datetime
import json
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import PRECISIONS, small_run

# What torch says of kernels on a GPU is no error of ours.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ONE = {"search": ("search", PRECISIONS["float16"]), "det": ("det", PRECISIONS["float32"])}
TWO = {
    "search": ("search", PRECISIONS["float32"]),
    "search, float16, a worker": ("search", [*PRECISIONS["float16"], "DATALOADER.NUM_WORKERS", "1"]),
    "algorithm 3": ("search", ["SEARCH.ALGORITHM", "shared_forward", "SEARCH.SHARED_IMAGES", "False"]),
    "seg, float16": ("seg", PRECISIONS["float16"]),
}


def process(rank, world_size, port, backend, device, cases, folder):
    """Do the runs one after another, and leave what each came to."""
    # All on one GPU.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
    try:
        for number, (name, options) in enumerate(cases):
            run = small_run(name, device, f"{folder}/{number}", options, world_size=world_size)
            run.train()
            metrics = run.conclude()
            sums = [float(weight.detach().double().sum()) for weight in run.model.parameters()]
            with open(f"{folder}/{number}/rank{rank}.json", "w") as file:
                json.dump({"sums": sums, "metrics": metrics}, file)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world_size", "backend", "cases"),
    [(1, "nccl", ONE), (2, "gloo", TWO)],
    ids=["NCCL", "gloo, two processes"],
)
def test_processes_end_with_the_same_weights(world_size, backend, cases, device, tmp_path):
    if device == "cpu":
        backend = "gloo"
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    arguments = (world_size, port, backend, device, list(cases.values()), str(tmp_path))
    mp.spawn(process, arguments, nprocs=world_size)
    for number, case in enumerate(cases):
        found = [
            json.loads((tmp_path / str(number) / f"rank{rank}.json").read_text())
            for rank in range(world_size)
        ]
        assert all(torch.isfinite(torch.tensor(found[0]["sums"]))), case
        assert all(one["sums"] == found[0]["sums"] for one in found), case
        assert all(one["metrics"].keys() == found[0]["metrics"].keys() for one in found), case
