"""Workers that stand still: noticed, said, worked around, and in the end replaced."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from taskiq.kicker import AsyncKicker
from tests.ipc.events import later

from taskiq_supervise import WorkerLostError

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

SERVICE = """
import os
from app import append, broker

@broker.task
async def stall(name):
    append("ledger", "stall", name, os.getpid())
    append("bell", "stall", name, os.getpid())
    gate = os.open("gate", os.O_RDONLY)
    os.read(gate, 1)  # of all things, in the event loop
    os.close(gate)
    return name
"""


@pytest.fixture
def stall(client: Any, workdir: Path) -> Any:
    """A task that blocks its worker's event loop until a byte is in the gate."""
    (workdir / "service.py").write_text(SERVICE)
    return AsyncKicker("service:stall", client.broker, {})


def health(supervisor: "Supervisor", pid: int) -> str:
    (worker,) = [one for one in supervisor.status()["workers"] if one["pid"] == pid]
    return str(worker["health"])


async def run_by(client: Any, ledger: "Ledger", pid: int, numbers: range) -> None:
    """Each of these is run by that worker, though nothing sent after it would wake one more."""
    for number in numbers:
        task = await client.record.kiq(number)
        assert (await task.wait_result(timeout=30)).return_value == number
    ran = [entry for entry in ledger.entries("record") if int(entry[0]) in numbers]
    assert ran == [(str(number), pid) for number in numbers]


async def test_a_blocked_loop_is_reported_with_its_stack_and_not_touched(
    supervise: Start, client: Any, stall: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    arguments = ("app:broker", "service", "--workers", "2", "--hang-warn", "2")
    supervisor = supervise(*arguments).wait_ready()
    task = await stall.kiq("blocked")
    _, pid = bell.wait()
    supervisor.log.wait_for(rf"pid={pid} hangs: its event loop has been blocked for \d+ s")
    supervisor.log.wait_for(rf"pid={pid} stands at")
    supervisor.log.wait_for(r'service\.py", line 10 in stall')
    assert health(supervisor, pid) == "hung"
    (other,) = set(supervisor.worker_pids()) - {pid}
    await run_by(client, ledger, other, range(5))

    gate.let_by(1)
    assert (await task.wait_result(timeout=30)).return_value == "blocked"
    supervisor.log.wait_for(rf"pid={pid} goes on: its event loop was blocked for \d+ s")
    assert health(supervisor, pid) == "ok"
    assert pid in supervisor.worker_pids()
    # It takes tasks again: with it and the other one blocked there is nobody else.
    one = await stall.kiq("one")
    pids = {bell.wait()[1]}
    two = await stall.kiq("two")
    pids.add(bell.wait()[1])
    assert pids == set(supervisor.worker_pids())
    gate.let_by(2)
    for task in (one, two):
        (await task.wait_result(timeout=30)).raise_for_error()
    assert ledger.counts("stall") == {"blocked": 1, "one": 1, "two": 1}
    assert supervisor.stop() == 0


async def test_a_loop_blocked_for_too_long_is_killed_and_its_task_does_not_do_it_for_ever(
    supervise: Start, client: Any, stall: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    limits = ("--hang-warn", "0", "--hang-timeout", "2", "--max-deliveries", "2")
    supervisor = supervise("app:broker", "service", "--workers", "1", *limits).wait_ready()
    task = await stall.kiq("blocked")
    pids = [bell.wait()[1] for _ in range(2)]
    with pytest.raises(WorkerLostError, match="its event loop was blocked") as caught:
        (await task.wait_result(timeout=30)).raise_for_error()
    assert (caught.value.hung, caught.value.attempts) == (True, 2)
    assert ledger.entries("stall") == [("blocked", pid) for pid in pids]
    for pid in pids:
        supervisor.log.wait_for(rf"pid={pid} its event loop was blocked for \d+ s: killed")
        supervisor.log.wait_for(rf"pid={pid} stands at")
        supervisor.log.wait_for(rf"pid={pid} killed by SIGKILL: its event loop was blocked")
    assert supervisor.log.text.count('service.py", line 10 in stall') == 2
    supervisor.log.wait_for(f"held task {task.task_id}: started too often, dead letter")
    assert supervisor.pool_status()["queue"]["dead"] == 1
    (worker,) = supervisor.status()["workers"]
    assert (worker["last_exit_reason"], worker["restarts"]) == ("hang", 2)
    assert supervisor.stop() == 0


async def until_idle(client: Any, workers: int) -> None:
    """Until the queue counts on so many: workers that sleep, and run nothing."""
    queue = (await client.broker.attached()).queue.queue
    await later(lambda: queue.core.empty_others(queue.participant) == workers)


async def test_stopped_workers_are_noticed_and_what_would_wake_them_wakes_others(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    limits = ("--graceful-timeout", "0", "--shutdown-timeout", "0")
    supervisor = supervise("app:broker", "--workers", "2", *limits).wait_ready()
    held = await client.hold.kiq("held")
    _, pid = bell.wait()
    (other,) = set(supervisor.worker_pids()) - {pid}
    os.kill(pid, signal.SIGSTOP)
    supervisor.log.wait_for(rf"pid={pid} was stopped by a signal")
    assert health(supervisor, pid) == "stopped"
    await run_by(client, ledger, other, range(5))
    os.kill(pid, signal.SIGCONT)
    supervisor.log.wait_for(rf"pid={pid} was continued")
    assert health(supervisor, pid) == "ok"

    # The idle one is rung first, unless it is known not to answer.
    await until_idle(client, 1)
    os.kill(other, signal.SIGSTOP)
    await until_idle(client, 0)
    await run_by(client, ledger, pid, range(5, 10))
    os.kill(other, signal.SIGCONT)
    await until_idle(client, 1)

    # Both are stopped, and what comes meanwhile is taken by the first that goes on.
    for one in (pid, other):
        os.kill(one, signal.SIGSTOP)
    await until_idle(client, 0)
    tasks = [await client.record.kiq(number) for number in range(10, 20)]
    gate.let_by(1)
    os.kill(pid, signal.SIGCONT)
    results = [await task.wait_result(timeout=30) for task in tasks]
    assert [result.return_value for result in results] == list(range(10, 20))
    assert ledger.entries("record")[10:] == [(str(number), pid) for number in range(10, 20)]
    assert (await held.wait_result(timeout=30)).return_value == "held"
    assert ledger.entries("hold") == [("held", pid)]

    # One that is still stopped cannot hold up the end.
    assert supervisor.stop() == 0
