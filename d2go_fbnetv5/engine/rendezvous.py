"""Where the processes of a run find each other: a store on machine 0, which torch's process groups are made with.

The store is torch's own: whoever reaches its port can read and write it, for nobody has to say who he is. That of a run
on one machine therefore listens on the loopback interface alone.
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
import socket
import time
from dataclasses import dataclass

import torch.distributed as dist

from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# Machines are started one after the other, but not a quarter of an hour apart.
_MEETING = datetime.timedelta(minutes=15)


@dataclass(frozen=True)
class Address:
    """Where a store is reached.

    Attributes:
        named: the option or variables that say so, with their values, for messages.
        prefix: of all keys; another one for each start of processes that share a store.
    """

    host: str
    port: int
    named: str
    prefix: str = ""

    def connect(self, timeout: datetime.timedelta) -> dist.Store:
        """Open a connection of its own to the store, which is there already."""
        store = dist.TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=timeout)
        return dist.PrefixStore(self.prefix, store)


def host_store(address: Address, interface: str, timeout: datetime.timedelta) -> tuple[dist.Store, Address]:
    """Open a store in this process.

    Args:
        address: its port may be 0 for a free one.
        interface: the address to listen on, "" for all of the machine's.

    Returns:
        the store, and the address at which this machine's processes reach it.

    Raises:
        ValueError: the port is not free.
    """
    listener = _listen(address, interface)
    port = listener.getsockname()[1]
    server = dist.TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
        use_libuv=False,  # with which torch before 2.8 takes no socket that listens already
    )
    here = Address(LOOPBACK, port, address.named, address.prefix)
    return dist.PrefixStore(here.prefix, server), here


def _listen(address: Address, interface: str) -> socket.socket:
    both = not interface and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            (interface, address.port), family=family, backlog=4096, dualstack_ipv6=both
        )
    except OSError as error:
        found = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise InputError(
            f"{address.named}: port {address.port} of this machine {found}, allowed: a free one"
        ) from None


def reach_store(address: Address, timeout: datetime.timedelta) -> dist.Store:
    """Open a connection to a store that may not be there yet.

    Raises:
        ValueError: there is no such host, or nothing of this run answers in `timeout`, or in 15 minutes.
    """
    end, waiting = time.monotonic() + min(timeout, _MEETING).total_seconds(), False
    while True:
        try:
            socket.create_connection((address.host, address.port), timeout=10).close()
            break
        except socket.gaierror as error:
            raise InputError(f"{address.named}: {address.host} is no known host ({error.strerror})") from None
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"{address.named}: process 0's machine does not answer there "
                    f"({error.strerror or 'timed out'}); is it started, and the port open?"
                ) from None
        if not waiting:
            logger.error("waiting for process 0's machine at %s:%d", address.host, address.port)
            waiting = True
        time.sleep(0.5)
    try:
        return address.connect(timeout)
    except dist.DistError:
        raise InputError(f"{address.named}: what answers there is no run of d2go_fbnetv5") from None


def environment_store(timeout: datetime.timedelta) -> tuple[dist.Store, Address]:
    """Open the store of torchrun, or of another launcher that sets MASTER_ADDR and MASTER_PORT.

    Raises:
        ValueError: process 0 cannot open it, or another one does not reach it.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address = Address(host, port, f"MASTER_ADDR {host}, MASTER_PORT {port}", f"d2go_fbnetv5/{restarts}")
    # torchrun has one open already, unless it is told not to.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ["RANK"] == "0":
        return host_store(address, "", timeout)
    return reach_store(address, timeout), address


def gather_machines(
    store: dist.Store, machine_rank: int, num_machines: int, num_processes: int, timeout: datetime.timedelta
) -> None:
    """Wait until every machine's launcher has come.

    Raises:
        ValueError: a machine comes twice, was started with other numbers than machine 0, or does not come.
    """
    if store.add(f"machine/{machine_rank}", 1) > 1:
        raise InputError(f"--machine-rank is {machine_rank}, which another machine has already")
    numbers = f"--num-machines {num_machines} --num-processes {num_processes}"
    store.set(f"numbers/{machine_rank}", numbers)
    end = time.monotonic() + min(timeout, _MEETING).total_seconds()
    while missing := [m for m in range(num_machines) if not store.check([f"numbers/{m}"])]:
        if time.monotonic() > end:
            raise InputError(
                f"--num-machines is {num_machines}, but in {end_minutes(timeout):g} minutes nothing came of the one "
                f"with --machine-rank {', '.join(map(str, missing))}"
            )
        time.sleep(0.2)
    of_first = store.get("numbers/0").decode()
    if of_first != numbers:
        raise InputError(f"this machine was started with {numbers}, allowed: machine 0's {of_first}")


def end_minutes(timeout: datetime.timedelta) -> float:
    """Return how long machines wait for each other at the start."""
    return min(timeout, _MEETING).total_seconds() / 60
