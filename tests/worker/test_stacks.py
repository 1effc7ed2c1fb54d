"""SIGUSR1 shows what a process is doing, above all one that does nothing any more."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broker.conftest import SMALL

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.task import QueueKicker
from taskiq_supervise.ipc.framing import send
from taskiq_supervise.worker.config import WorkerConfig

if TYPE_CHECKING:
    from tests.worker.conftest import Notes, Nursery

Start = Callable[[str], "Nursery"]

APP = """
import asyncio, os, signal, threading
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("stacks")

def note(text):
    fd = os.open("notes", os.O_WRONLY)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)

def hang():
    note("begun")
    with open("gate") as file:
        file.read()

@broker.task(task_name="block")
async def block():
    hang()

@broker.task(task_name="ping")
async def ping():
    return "pong"

if os.path.exists("hang"):
    hang()
"""

LAST = " in _run_module_as_main\n"
"""The end of a dump: the main thread's first frame."""


@pytest.fixture(autouse=True)
def gate(workdir: Path) -> None:
    os.mkfifo("gate")


async def test_a_worker_with_a_blocked_loop_shows_all_its_threads(
    nursery: Start, notes: "Notes"
) -> None:
    zygote = nursery(APP)
    zygote.load(log_level="WARNING")
    zygote.supervise("stacks")
    client = SharedMemoryBroker("stacks", geometry=SMALL)
    await client.startup()
    worker = zygote.fork().wait_ready()
    task = await QueueKicker[[], None]("block", client, {}).kiq()
    assert notes.next() == "begun"
    for _ in range(2):
        worker.kill(signal.SIGUSR1)
        stacks = worker.read_stacks(until=LAST)
        assert " in hang\n" in stacks
        assert 'app.py", line 18 in block\n' in stacks
    # It goes on as if nothing had been.
    Path("gate").write_text("")
    assert not (await task.wait_result(timeout=10)).is_err
    await client.shutdown()


@pytest.mark.parametrize("way", ["signal.SIG_IGN", "signal.SIG_DFL", "lambda *_: note('asked')"])
def test_whatever_the_application_does_with_the_signal_when_it_is_imported(
    nursery: Start, notes: "Notes", way: str
) -> None:
    zygote = nursery(APP + f"signal.signal(signal.SIGUSR1, {way})\n")
    zygote.load()
    worker = zygote.fork().wait_ready()
    worker.kill(signal.SIGUSR1)
    assert "subordinate.py" in worker.read_stacks(until=LAST)
    zygote.process.send_signal(signal.SIGUSR1)
    while "zygote.py" not in zygote.log:
        assert zygote.process.poll() is None


def test_a_worker_that_hangs_in_its_import_shows_where(nursery: Start, notes: "Notes") -> None:
    zygote = nursery(APP)
    zygote.load(preload=False)
    Path("hang").touch()
    worker = zygote.fork()
    assert notes.next() == "begun"
    worker.kill(signal.SIGUSR1)
    assert " in hang\n" in worker.read_stacks(until=LAST)


@pytest.mark.parametrize("preload", [True, False])
def test_a_zygote_whose_import_hangs_shows_where(
    nursery: Start, notes: "Notes", preload: bool
) -> None:
    Path("hang").touch()
    zygote = nursery(APP)
    send(
        zygote.socket,
        {"op": "load", "config": WorkerConfig("app:broker", preload=preload).to_dict()},
    )
    assert notes.next() == "begun"
    while " in hang\n" not in zygote.log:
        assert zygote.process.poll() is None
        zygote.process.send_signal(signal.SIGUSR1)
    Path("gate").write_text("")
    assert zygote.next()["op"] == "loaded"
