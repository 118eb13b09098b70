"""Running a function in several processes: torch's elastic launcher, or torchrun around us."""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from d2go_fbnetv5.engine.log import setup_logging
from d2go_fbnetv5.utils.errors import USER_ERRORS, InputError, sentence

# Process 0 may evaluate or write for long while the others wait.
_TIMEOUT = datetime.timedelta(hours=2)


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher with its environment, started this process as one of several."""
    return all(
        name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    )


def total_processes(num_processes: int = 1, num_machines: int = 1) -> int:
    """How many processes a run with these options has in all; a number below 1 is a ValueError."""
    for name, value in (("--num-processes", num_processes), ("--num-machines", num_machines)):
        if value < 1:
            raise InputError(f"{name} is {value}, allowed: 1 or more")
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else num_processes * num_machines


def launch(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    device: str = "cpu",
) -> None:
    """Run `function(*args)` in every process of a group: gloo on CPUs, NCCL on GPUs.

    Args:
        function: importable by name, as are its arguments' types.
        num_processes: on this machine.
        num_machines, machine_rank: how many machines there are, and which of them this is, from 0.
        dist_url: "tcp://host:port" on machine 0; "auto" for a free port where there is one machine.
        device: "cpu" or "cuda".

    Raises:
        ValueError: options that do not fit together, or the user's error of a process, in its own words.
    """
    if under_torchrun():
        if num_processes * num_machines > 1:
            raise InputError(
                "--num-processes and --num-machines are torchrun's to set where it starts the processes"
            )
        _in_group(function, args, device)
        return
    total = total_processes(num_processes, num_machines)
    _check(num_processes, num_machines, machine_rank, dist_url, device)
    if total == 1:
        function(*args)
        return
    # The launcher's own logs would bury the one sentence that says what went wrong.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_processes,
        run_id="d2go_fbnetv5",
        max_restarts=0,
        **_rendezvous(num_machines, machine_rank, dist_url),
    )
    with tempfile.TemporaryDirectory(prefix="d2go_fbnetv5_") as reports:
        try:
            elastic_launch(config, _worker)(function, args, device, reports)
        except ChildFailedError:
            # When one process ends, the others fail for want of it; what counts is the error that was the user's.
            for report in sorted(Path(reports).iterdir()):
                raise InputError(report.read_text(encoding="utf-8")) from None
            raise
        except SignalException as error:
            raise KeyboardInterrupt from error


def _check(num_processes: int, num_machines: int, machine_rank: int, dist_url: str, device: str) -> None:
    if not 0 <= machine_rank < num_machines:
        raise InputError(f"--machine-rank is {machine_rank}, allowed: 0 to {num_machines - 1}")
    if dist_url == "auto":
        if num_machines > 1:
            raise InputError(
                "--dist-url is 'auto', allowed for several machines: tcp://host:port of machine 0"
            )
    else:
        url = urllib.parse.urlsplit(dist_url)
        if url.scheme != "tcp" or not url.hostname or not _port(url):
            raise InputError(f"--dist-url is {dist_url!r}, allowed: auto, tcp://host:port")
    if device == "cuda" and num_processes > torch.cuda.device_count():
        raise InputError(
            f"--num-processes is {num_processes}, allowed: 1 to {torch.cuda.device_count()}, the GPUs here"
        )


def _port(url: urllib.parse.SplitResult) -> int | None:
    try:
        return url.port
    except ValueError:
        return None


def _rendezvous(num_machines: int, machine_rank: int, dist_url: str) -> dict[str, Any]:
    if num_machines == 1 and dist_url == "auto":
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    url = urllib.parse.urlsplit(dist_url)
    configs = {"rank": machine_rank, "timeout": 900}
    return {"rdzv_backend": "static", "rdzv_endpoint": f"{url.hostname}:{url.port}", "rdzv_configs": configs}


def _worker(function: Callable[..., Any], args: tuple[Any, ...], device: str, reports: str) -> None:
    try:
        _in_group(function, args, device)
    except USER_ERRORS as error:
        Path(reports, os.environ["RANK"]).write_text(sentence(error), encoding="utf-8")
        raise


def _in_group(function: Callable[..., Any], args: tuple[Any, ...], device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before NCCL picks one
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        setup_logging(dist.get_rank() == 0)
        function(*args)
    finally:
        dist.destroy_process_group()
