import datetime
import json
import socket
import threading
from pathlib import Path

import pytest

from d2go_fbnetv5.engine import heartbeat
from d2go_fbnetv5.engine.heartbeat import Heartbeat, who_is_missing
from d2go_fbnetv5.engine.rendezvous import LOOPBACK, Address, gather_machines, host_store, reach_store
from d2go_fbnetv5.utils.errors import InputError

SHORT = datetime.timedelta(seconds=0.5)
TIME = datetime.timedelta(seconds=20)


@pytest.fixture
def hosted():
    """A store of this process and its address."""
    return host_store(Address(LOOPBACK, 0, "--dist-url is auto", "test"), LOOPBACK, TIME)


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.create_server(("", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("interface", [LOOPBACK, ""])
def test_a_port_in_use_is_named(taken, interface):
    with pytest.raises(
        InputError, match=f"--dist-url: port {taken} of this machine is in use, allowed: a free"
    ):
        host_store(Address(LOOPBACK, taken, "--dist-url"), interface, TIME)


def test_one_machines_store_listens_on_loopback_alone(hosted):
    port = f"{hosted[1].port:04X}"
    tables = [Path("/proc/net", name) for name in ("tcp", "tcp6")]
    if not tables[0].exists():
        pytest.skip("no /proc/net")
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")]
    assert listening == [f"0100007F:{port}"]


def test_a_machine_that_does_not_answer_and_one_that_does_not_exist():
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(InputError, match="--dist-url: process 0's machine does not answer there"):
        reach_store(Address(LOOPBACK, port, "--dist-url"), SHORT)
    with pytest.raises(InputError, match="--dist-url: no-such-host.invalid is no known host"):
        reach_store(Address("no-such-host.invalid", port, "--dist-url"), SHORT)


def test_machines_wait_for_each_other(hosted):
    store, address = hosted
    other = threading.Thread(target=gather_machines, args=(address.connect(TIME), 1, 2, 4, TIME))
    other.start()
    gather_machines(store, 0, 2, 4, TIME)
    other.join(10)
    assert not other.is_alive()


def test_machines_that_do_not_fit_together(hosted):
    store, _ = hosted
    with pytest.raises(InputError, match="in .* minutes nothing came of the one with --machine-rank 1, 2"):
        gather_machines(store, 0, 3, 4, SHORT)
    with pytest.raises(InputError, match="--machine-rank is 0, which another machine has already"):
        gather_machines(store, 0, 3, 4, SHORT)
    store.set("numbers/2", "--num-machines 3 --num-processes 4")
    with pytest.raises(
        InputError, match="--num-processes 2, allowed: machine 0's --num-machines 3 --num-proc"
    ):
        gather_machines(store, 1, 3, 2, SHORT)


def test_a_process_that_falls_silent_is_named_with_its_step(hosted, monkeypatch):
    store, address = hosted
    monkeypatch.setattr(heartbeat, "_PERIOD", 0.05)
    heartbeat.reach(7)
    beats = [Heartbeat(address.connect(TIME), rank, 3) for rank in (0, 2)]
    store.set("alive/1", '{"count": 9, "step": 7, "place": "data/loader.py:9"}')
    assert who_is_missing(store, 0, 3) == "process 1 does not answer (in step 7, at data/loader.py:9)"
    assert json.loads(store.get("alive/2"))["step"] == 7
    for beat in beats:
        beat.stop()
    # What is done is not missed.
    assert who_is_missing(store, 1, 3) == "it is gone"


def test_processes_that_are_behind_are_named(hosted, monkeypatch):
    store, _ = hosted
    monkeypatch.setattr(heartbeat, "_PERIOD", 0.0)
    counts = iter(range(100))

    def read(store, rank):
        return {"count": next(counts), "step": 5 if rank == 2 else 6, "place": f"data/loader.py:{rank}"}

    monkeypatch.setattr(heartbeat, "_read", read)
    assert who_is_missing(store, 0, 4) == "process 2 is in step 5, at data/loader.py:2"
