"""Recycling: a worker that has reached a limit of its life is replaced before it leaves."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskiq.kicker import AsyncKicker
from tests.e2e.conftest import ended

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

EXACT = ("--recycle-jitter", "0")

SERVICE = """
import os, subprocess, sys
from app import broker

KEEPS = "import os, sys; kept = os.urandom(1024) * (int(sys.argv[1]) * 1024); print(); input()"
kept = []

@broker.task
def keep(mebibytes):
    kept.append(os.urandom(1024) * (mebibytes * 1024))
    command = [sys.executable, "-c", KEEPS, str(mebibytes)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.read(1)
    kept.append(child)
    return os.getpid(), child.pid
"""


async def result_of(task: Any) -> Any:
    result = await task.wait_result(timeout=30)
    result.raise_for_error()
    return result.return_value


def assert_that_each_successor_came_first(log: str) -> int:
    """How many workers were recycled."""
    recycled = re.findall(r"worker=(\d) gen=(\d+) pid=\d+ exited with status 0: recycled", log)
    for slot, generation in recycled:
        ready = log.index(f"worker={slot} gen={int(generation) + 1} pid=")
        drains = re.search(
            rf"worker={slot} gen={generation} pid=\d+ drains: it is recycled; its successor", log
        )
        assert drains is not None
        assert re.match(r"worker=\d gen=\d+ pid=\d+ ready\n", log[ready:]) is not None
        assert ready < drains.start()
    return len(recycled)


async def test_after_so_many_tasks_under_load_each_is_run_once_and_nothing_has_failed(
    supervise: Start, client: Any, ledger: "Ledger"
) -> None:
    limits = ("--max-tasks-per-worker", "50", "--recycle-jitter", "0.2")
    supervisor = supervise("app:broker", "--workers", "2", *limits).wait_ready()
    ended = asyncio.Event()
    numbers = iter(range(1_000_000))
    sent = []

    async def send() -> None:
        while not ended.is_set():
            number = next(numbers)
            sent.append(number)
            assert await result_of(await client.record.kiq(number)) == number

    senders = [asyncio.create_task(send()) for _ in range(8)]
    for slot in range(2):
        gone = rf"worker={slot} gen=2 pid=\d+ exited with status 0: recycled"
        await asyncio.to_thread(supervisor.log.wait_for, gone)
    ended.set()
    await asyncio.gather(*senders)
    assert ledger.counts("record") == {str(number): 1 for number in sent}
    assert all(worker["restarts"] == 0 for worker in supervisor.status()["workers"])
    assert supervisor.stop() == 0
    log = supervisor.log.without_tasks
    assert assert_that_each_successor_came_first(log) >= 4
    assert not re.search("WARNING|ERROR|again", log)
    # A quarter of two is none, which would be never: one at a time.
    under_way: set[str] = set()
    for line in log.splitlines():
        if match := re.search(r"worker=(\d) gen=\d+ pid=\d+ drains: it is recycled", line):
            assert under_way == set()
            under_way.add(match[1])
        if match := re.search(r"worker=(\d) gen=\d+ pid=\d+ exited with status 0: recycl", line):
            under_way.remove(match[1])


async def test_a_worker_that_takes_too_much_memory_with_its_children_is_replaced(
    supervise: Start, client: Any, workdir: Path
) -> None:
    (workdir / "service.py").write_text(SERVICE)
    limits = ("--max-memory", "250M", *EXACT)
    supervisor = supervise("app:broker", "service", "--workers", "1", *limits).wait_ready()
    keep: Any = AsyncKicker("service:keep", client.broker, {})
    # Neither of the two takes too much.
    pid, child = await result_of(await keep.kiq(120))
    supervisor.log.wait_for(rf"worker=0 gen=1 pid={pid} takes \d+ MiB of 250 that it may")
    supervisor.log.wait_for(rf"worker=0 gen=1 pid={pid} exited with status 0: recycled")
    assert ended(child, timeout=5)
    (worker,) = supervisor.status()["workers"]
    assert (worker["generation"], worker["restarts"], worker["last_exit_reason"]) == (
        2,
        0,
        "recycle",
    )
    assert await result_of(await client.record.kiq(1)) == 1
    assert supervisor.stop() == 0
    assert assert_that_each_successor_came_first(supervisor.log.without_tasks) == 1


async def test_a_worker_of_that_age_is_replaced_and_ends_its_task_first(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    limits = ("--max-lifetime", "1", "--graceful-timeout", "600", *EXACT)
    supervisor = supervise("app:broker", "--workers", "1", *limits)
    # Its next workers will be recycled, too; this one is held on to.
    held = await client.hold.kiq("held")
    _, pid = bell.wait()
    supervisor.log.wait_for(rf"gen=1 pid={pid} has lived for \d+ s: to be recycled")
    supervisor.log.wait_for(rf"gen=1 pid={pid} drains: it is recycled; its successor is ready")
    assert await result_of(await client.record.kiq(1)) == 1
    assert pid not in ledger.pids("record")
    assert ledger.counts("held") == {}
    gate.let_by(1)
    assert await result_of(held) == "held"
    assert ledger.entries("hold") == [("held", pid)]
    supervisor.log.wait_for(rf"gen=1 pid={pid} exited with status 0: recycled")
    assert {worker["restarts"] for worker in supervisor.status()["workers"]} == {0}
    assert supervisor.stop() == 0
