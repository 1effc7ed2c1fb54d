"""What a worker does to its own process before the application has its turn."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from taskiq_supervise.worker.process import be_nice

if TYPE_CHECKING:
    from tests.worker.conftest import Nursery

Start = Callable[[str], "Nursery"]

APP = """
import os
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("process")
with open(f"imported-{os.getpid()}", "w") as file:
    file.write(f"{os.nice(0)} {sorted(os.sched_getaffinity(0))}")
"""


@pytest.mark.parametrize("preload", [True, False])
def test_workers_have_their_priority_and_their_cpu_in_turn(nursery: Start, preload: bool) -> None:
    zygote = nursery(APP)
    zygote.load(nice=5, pin=True, preload=preload)
    allowed = sorted(os.sched_getaffinity(0))
    mine = psutil.Process().nice()
    # The seat does not matter.
    workers = [zygote.fork(slot, seat=2 - slot).wait_ready() for slot in range(3)]
    for worker in workers:
        cpu = allowed[worker.slot % len(allowed)]
        process = psutil.Process(worker.pid)
        assert (process.nice(), process.cpu_affinity()) == (mine + 5, [cpu])
        if not preload:
            imported = Path(f"imported-{worker.pid}").read_text()
            assert imported == f"{mine + 5} [{cpu}]", "set before the application is imported"
    # Not of the zygote, from which all others come.
    zygote_itself = psutil.Process(zygote.process.pid)
    assert (zygote_itself.nice(), zygote_itself.cpu_affinity()) == (mine, allowed)


def test_the_guard_of_a_worker_keeps_its_priority(nursery: Start) -> None:
    """It has to kill a worker that takes all the time there is."""
    zygote = nursery(APP)
    zygote.load(nice=19)
    worker = zygote.fork().wait_ready()
    mine = psutil.Process().nice()
    threads = [int(entry.name) for entry in Path(f"/proc/{worker.pid}/task").iterdir()]
    nices = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert nices.pop(worker.pid) == 19
    assert mine in nices.values()


def test_a_priority_that_one_may_not_have_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_increment: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "nice", refuse)
    be_nice(0)
    assert not caplog.text
    be_nice(-5)
    assert "The priority stays as it is, nice -5: " in caplog.text
