"""Running a function in several processes: our own on each machine, or torchrun's around us."""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from d2go_fbnetv5.engine.heartbeat import Heartbeat, who_is_missing
from d2go_fbnetv5.engine.log import setup_logging
from d2go_fbnetv5.engine.rendezvous import (
    LOOPBACK,
    Address,
    environment_store,
    gather_machines,
    host_store,
    reach_store,
)
from d2go_fbnetv5.utils.errors import (
    USER_ERRORS,
    InputError,
    LostProcessError,
    RemoteTraceback,
    Terminated,
    describe_signal,
    sentence,
    terminated_as_interrupted,
)
from d2go_fbnetv5.utils.stdout import named_stdout

# Seconds: how often a launcher looks after the other machines, and how long a process may take to end when asked.
_LOOK = 1.0
_LEAVE = 10.0


def under_torchrun() -> bool:
    """Return whether torchrun, or another launcher with its environment, started this process as one of several."""
    return all(
        name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    )


def total_processes(num_processes: int = 1, num_machines: int = 1) -> int:
    """Return how many processes a run with these options has in all; a number below 1 is a ValueError."""
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
    timeout_minutes: float = 60.0,
) -> None:
    """Run `function(*args)` in every process of a group: gloo on CPUs, NCCL on GPUs.

    Args:
        function: importable by name, as are its arguments' types.
        num_processes: on this machine.
        num_machines, machine_rank: how many machines there are, and which of them this is, from 0.
        dist_url: "tcp://host:port" on machine 0; "auto" for a free port where there is one machine.
        device: "cpu" or "cuda".
        timeout_minutes: how long a process waits for another one that does not come.

    Raises:
        ValueError: options that do not fit together, or the user's error of a process, in its own words.
        LostProcessError: a process was killed, or others waited for it in vain.
        RuntimeError: any other error of a process, with its traceback as the cause.
    """
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if device == "cuda":
        _check_gpus(num_processes)
    if under_torchrun():
        if num_processes * num_machines > 1:
            raise InputError(
                "--num-processes and --num-machines are torchrun's to set where it starts the processes"
            )
        _in_group(function, args, device, timeout, *environment_store(timeout))
        return
    total = total_processes(num_processes, num_machines)
    _check(num_processes, num_machines, machine_rank, dist_url)
    if total == 1:
        function(*args)
        return
    if device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
        # The processes' own sentences say what torch would say in a screen of frames.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    store, address = _meet(num_processes, num_machines, machine_rank, dist_url, timeout)
    first = machine_rank * num_processes
    members = [_Member(first + local, local, total) for local in range(num_processes)]
    with _started(members, function, args, device, timeout, address):
        _wait(members, store)
        store.set(f"ended/{machine_rank}", "")
        if machine_rank == 0:  # the store's process is the last to go
            with contextlib.suppress(dist.DistError):
                store.wait([f"ended/{machine}" for machine in range(num_machines)], timeout)


def _check(num_processes: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    if not 0 <= machine_rank < num_machines:
        raise InputError(f"--machine-rank is {machine_rank}, allowed: 0 to {num_machines - 1}")
    if dist_url == "auto":
        if num_machines > 1:
            raise InputError(
                "--dist-url is 'auto', allowed for several machines: tcp://host:port of machine 0"
            )
        return
    url = urllib.parse.urlsplit(dist_url)
    if url.scheme != "tcp" or not url.hostname or not _port(url):
        raise InputError(f"--dist-url is {dist_url!r}, allowed: auto, tcp://host:port")


def _check_gpus(num_processes: int) -> None:
    option, number = "--num-processes", num_processes
    if under_torchrun():
        local = os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1)
        option, number = "--nproc-per-node", int(local)
    if number > torch.cuda.device_count():
        raise InputError(f"{option} is {number}, allowed: 1 to {torch.cuda.device_count()}, the GPUs here")


def _port(url: urllib.parse.SplitResult) -> int | None:
    try:
        return url.port
    except ValueError:
        return None


def _meet(
    num_processes: int, num_machines: int, machine_rank: int, dist_url: str, timeout: datetime.timedelta
) -> tuple[dist.Store, Address]:
    """The run's store and the address of it for this machine's processes, once all machines are there."""
    url = urllib.parse.urlsplit(dist_url)
    address = Address(url.hostname or LOOPBACK, url.port or 0, f"--dist-url is {dist_url}", "d2go_fbnetv5")
    if num_machines == 1:
        _stay_on_loopback()
        return host_store(address, LOOPBACK, timeout)
    if machine_rank == 0:
        store, address = host_store(address, "", timeout)
    else:
        store = reach_store(address, timeout)
    gather_machines(store, machine_rank, num_machines, num_processes, timeout)
    return store, address


def _stay_on_loopback() -> None:
    """Make the backends of this machine's processes listen where other machines cannot reach them."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)


@dataclass
class _Member:
    """A process of this machine in the eyes of its launcher.

    Attributes:
        status: that it has ended with, None while it runs.
        report: its word on its end. A process without one has not done its work, whatever its status is.
    """

    rank: int
    local_rank: int
    total: int
    process: Any = None
    reports: Connection | None = None
    status: int | None = None
    report: _Report | None = None

    def look(self) -> None:
        """Take the status, and then what the process has said before it."""
        self.status = self.process.exitcode
        with contextlib.suppress(EOFError):
            if self.report is None and self.reports is not None and self.reports.poll():
                self.report = self.reports.recv()

    @property
    def failed(self) -> bool:
        if self.report is None:
            return self.status is not None
        return self.report.kind != "done" or self.status not in (None, 0)

    def error(self) -> Exception:
        """Return what is to be said of its failure."""
        if self.report is not None and self.report.kind != "done":
            return self.report.error(self.rank)
        code = self.status or 0
        how = f"was {describe_signal(-code)}" if code < 0 else f"ended with status {code} before it was done"
        return LostProcessError(f"process {self.rank} {how}")


@dataclass(frozen=True)
class _Report:
    """A process' word on its end.

    Attributes:
        kind: "done", or what went wrong: "input", "lost" or "bug".
        text: a sentence, or the traceback of a bug.
    """

    kind: str
    text: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> _Report:
        if isinstance(error, Terminated):
            return cls("lost", f"process {rank} was {describe_signal(signal.SIGTERM)}")
        if isinstance(error, LostProcessError):
            return cls("lost", sentence(error))
        if isinstance(error, USER_ERRORS):
            return cls("input", sentence(error))
        return cls("bug", "".join(traceback.format_exception(error)))

    def error(self, rank: int) -> Exception:
        if self.kind == "bug":
            error: Exception = RuntimeError(f"process {rank} failed")
            error.__cause__ = RemoteTraceback(self.text)
            return error
        return (LostProcessError if self.kind == "lost" else InputError)(self.text)


@contextlib.contextmanager
def _started(
    members: Sequence[_Member],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    device: str,
    timeout: datetime.timedelta,
    address: Address,
) -> Iterator[None]:
    """Inside, the processes run; afterwards none of them is left, nor any that they started."""
    # Each begins with nothing of this process' threads, locks and GPU.
    context = multiprocessing.get_context("spawn")
    try:
        for member in members:
            member.reports, sender = context.Pipe(duplex=False)
            member.process = context.Process(
                target=_worker,
                args=(
                    function,
                    args,
                    device,
                    timeout,
                    address,
                    member.rank,
                    member.local_rank,
                    member.total,
                    sender,
                ),
                name=f"process {member.rank}",
            )
            member.process.start()
            sender.close()
        yield
    finally:
        running = [member.process for member in members if member.process and member.process.pid]
        for process in running:
            process.terminate()
        end = time.monotonic() + _LEAVE
        for process in running:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _wait(members: Sequence[_Member], store: dist.Store) -> None:
    """Until all have ended well; raise what ended the first of them that did not, here or on another machine."""
    while True:
        for member in members:
            member.look()
        failed = [member for member in members if member.failed]
        if failed:
            # A process that was killed has said nothing, and makes others fail that say something.
            failed.sort(key=lambda member: (member.report is not None, member.rank))
            error = failed[0].error()
            with contextlib.suppress(dist.DistError):
                store.set("failed", sentence(error))
            raise error
        running = [member for member in members if member.status is None]
        if not running:
            return
        try:
            elsewhere = store.get("failed").decode() if store.check(["failed"]) else None
        except dist.DistError:
            elsewhere = "the launcher of machine 0 is gone"
        if elsewhere:
            raise LostProcessError(f"another machine's part of the run ended: {elsewhere}")
        reports = [member.reports for member in running if member.reports and member.report is None]
        wait([*reports, *(member.process.sentinel for member in running)], _LOOK)


def _worker(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    device: str,
    timeout: datetime.timedelta,
    address: Address,
    rank: int,
    local_rank: int,
    total: int,
    reports: Connection,
) -> None:
    """The whole of a process that `launch` starts."""
    os.setsid()  # Ctrl-C is the launcher's to hear, and what this process starts can be ended with it
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(total))
    try:
        with terminated_as_interrupted(), named_stdout():
            _in_group(function, args, device, timeout, address.connect(timeout), address)
        reports.send(_Report("done"))
    except BaseException as error:
        reports.send(_Report.of(error, rank))
        logging.getLogger("d2go_fbnetv5").debug("process %d ended here", rank, exc_info=True)
        raise SystemExit(1) from None


def _end_with_launcher() -> None:
    launcher = multiprocessing.parent_process()
    if launcher is not None:
        wait([launcher.sentinel])
        os.killpg(0, signal.SIGKILL)


def _in_group(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    device: str,
    timeout: datetime.timedelta,
    store: dist.Store,
    address: Address,
) -> None:
    rank, total = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if store.add(f"process/{rank}", 1) > 1:
        raise InputError(f"{address.named}: two processes have the rank {rank}, allowed: one for each rank")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before NCCL picks one
    heartbeat = Heartbeat(address.connect(timeout), rank, total)
    try:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=total, timeout=timeout)
        setup_logging(rank == 0)
        function(*args)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _for_want_of_another(error):
            raise
        try:
            missing = who_is_missing(address.connect(timeout), rank, total)
        except dist.DistError:
            missing = "process 0's machine is gone"
        waited = f"waited {timeout.total_seconds() / 60:g} minutes in vain"
        what = waited if "imed out" in str(error) else "lost another one"
        raise LostProcessError(f"process {rank} {what}: {missing}") from error
    heartbeat.stop()


def _for_want_of_another(error: RuntimeError) -> bool:
    """Return whether torch raised this because another process does not answer or is gone."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
