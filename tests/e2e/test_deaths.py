"""Processes are killed; tasks and those who wait for them are not lost."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from taskiq_supervise import WorkerLostError, wait_result

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

ONE_AT_A_TIME = ("--max-async-tasks", "1")


async def test_a_killed_workers_task_runs_again_at_once_and_nothing_is_lost(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    supervisor = supervise("app:broker", "--workers", "4", *ONE_AT_A_TIME).wait_ready()
    held = [await client.hold.kiq(f"held-{number}") for number in range(4)]
    at_work = dict(bell.wait() for _ in held)
    waiting = [await client.record.kiq(number) for number in range(200)]

    os.kill(at_work["held-0"], signal.SIGKILL)
    # The other three are busy and 200 are queued: it goes before them, to the replacement.
    assert bell.wait()[0] == "held-0"
    assert ledger.counts("record") == {}

    gate.let_by(4)
    results = [await task.wait_result(timeout=30) for task in held + waiting]
    assert [result.return_value for result in results] == [
        *(f"held-{number}" for number in range(4)),
        *range(200),
    ]
    assert ledger.counts("hold") == {"held-0": 2, "held-1": 1, "held-2": 1, "held-3": 1}
    assert ledger.counts("record") == {str(number): 1 for number in range(200)}

    workers = supervisor.status()["workers"]
    assert [worker["state"] for worker in workers] == ["ready"] * 4
    assert sorted(worker["restarts"] for worker in workers) == [0, 0, 0, 1]
    assert supervisor.stop() == 0


async def test_a_redelivered_task_goes_to_the_new_worker_and_does_not_wait_for_a_busy_one(
    supervise: Callable[..., "Supervisor"], client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervise("app:broker", "--workers", "2").wait_ready()
    held = [await client.hold_async.kiq(name) for name in ("one", "two")]
    at_work = dict(bell.wait() for _ in held)
    os.kill(at_work["one"], signal.SIGKILL)
    # "two" runs until the gate opens, so its worker is not the one.
    name, pid = bell.wait()
    assert name == "one"
    assert pid not in at_work.values()
    gate.let_by(2)
    for task in held:
        (await task.wait_result(timeout=30)).raise_for_error()


async def test_a_task_that_makes_its_worker_leave_is_not_started_without_end(
    supervise: Callable[..., "Supervisor"], client: Any, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2").wait_ready()
    task = await client.kill_own_worker.kiq(int(signal.SIGQUIT))
    result = await task.wait_result(timeout=30)
    assert isinstance(result.error, WorkerLostError)
    assert ledger.counts("kill") == {str(int(signal.SIGQUIT)): 3}


@pytest.mark.parametrize("preload", [(), ("--no-preload",)], ids=["preload", "no-preload"])
def test_an_import_that_hangs_does_not_outlive_the_supervisor(
    supervise: Callable[..., "Supervisor"], workdir: Path, bell: "Bell", preload: tuple[str, ...]
) -> None:
    (workdir / "slow.py").write_text(
        "import os, time\nopen('bell', 'w').write(f'import - {os.getpid()}\\n')\ntime.sleep(1000)\n"
    )
    supervisor = supervise("slow:broker", *preload)
    bell.wait()
    supervisor.process.kill()
    supervisor.wait()
    supervisor.log.wait_for_end(timeout=30)


async def test_a_worker_whose_loop_is_blocked_does_not_outlive_the_supervisor(
    supervise: Callable[..., "Supervisor"], client: Any, bell: "Bell"
) -> None:
    supervisor = supervise("app:broker", "--shutdown-timeout", "0").wait_ready()
    await client.block_the_loop.kiq()
    bell.wait()
    supervisor.process.kill()
    supervisor.wait()
    supervisor.log.wait_for_end(timeout=30)


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_task_that_kills_its_workers_is_started_three_times_and_its_waiter_is_told(
    supervise: Callable[..., "Supervisor"], client: Any, ledger: "Ledger", killer: signal.Signals
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    task = await client.kill_own_worker.kiq(int(killer))
    result = await task.wait_result(timeout=30)
    with pytest.raises(WorkerLostError, match=killer.name):
        result.raise_for_error()
    assert ledger.counts("kill") == {str(int(killer)): 3}
    assert supervisor.pool_status()["queue"]["dead"] == 1


async def test_tasks_beside_one_that_kills_its_worker_are_not_blamed(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    supervise("app:broker", "--workers", "1").wait_ready()
    names = [f"neighbour-{number}" for number in range(10)]
    neighbours = [await client.hold_async.kiq(name) for name in names]
    for _ in names:
        bell.wait()
    killer = await client.kill_own_worker.kiq(int(signal.SIGKILL))
    gate_opens_for_all = 64
    gate.let_by(gate_opens_for_all)

    with pytest.raises(WorkerLostError):
        (await killer.wait_result(timeout=30)).raise_for_error()
    results = [await task.wait_result(timeout=30) for task in neighbours]
    assert [result.return_value for result in results] == names
    assert ledger.counts("kill") == {str(int(signal.SIGKILL)): 3}


async def test_everything_killed_with_500_queued_and_started_again(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    arguments = ("app:broker", "--workers", "4", *ONE_AT_A_TIME)
    first = supervise(*arguments).wait_ready()
    held = [await client.hold.kiq(f"held-{number}") for number in range(4)]
    for _ in held:
        bell.wait()
    queued = [await client.record.kiq(number) for number in range(500)]
    first.kill_everything()
    assert ledger.counts("record") == {}

    gate.let_by(4)
    supervise(*arguments)
    results = [await task.wait_result(timeout=30) for task in held + queued]
    assert not any(result.is_err for result in results)
    assert ledger.counts("record") == {str(number): 1 for number in range(500)}
    assert ledger.counts("hold") == {f"held-{number}": 2 for number in range(4)}


async def test_a_client_that_is_killed_after_kiq_loses_nothing(
    supervise: Callable[..., "Supervisor"], app: Any, ledger: "Ledger"
) -> None:
    code = (
        "import asyncio, os, signal, app\n"
        "async def main():\n"
        "    await app.broker.startup()\n"
        "    ids = [(await app.record.kiq(number)).task_id for number in range(50)]\n"
        "    print(*ids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)
    output, _ = await client.communicate()
    assert client.returncode == -signal.SIGKILL
    supervise("app:broker", "--workers", "2")
    async with app.broker:
        for task_id in output.decode().split():
            await wait_result(app.broker, task_id, timeout=30)
    assert ledger.counts("record") == {str(number): 1 for number in range(50)}


async def test_a_killed_supervisor_leaves_no_orphans_and_its_running_task_runs_again(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    first = supervise("app:broker", "--workers", "2").wait_ready()
    tree = first.tree()
    assert len(tree) >= 4  # supervisor, zygote, two workers
    task = await client.hold.kiq("held")
    bell.wait()
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    first.log.wait_for_end()
    assert first.alive(tree) == []

    gate.let_by(1)
    supervise("app:broker", "--workers", "2")
    assert (await task.wait_result(timeout=30)).return_value == "held"
    assert ledger.counts("hold") == {"held": 2}


@pytest.mark.parametrize("attempt", range(4))
def test_a_supervisor_killed_while_it_starts_leaves_no_orphans(
    supervise: Callable[..., "Supervisor"], app: Any, attempt: int
) -> None:
    supervisor = supervise("app:broker", "--workers", "12")
    # The first is ready, others are being forked, each by way of a process that ends at once.
    supervisor.log.wait_for("ready")
    supervisor.process.kill()
    supervisor.wait()
    assert "Traceback" not in supervisor.log.wait_for_end(timeout=10)


async def test_the_pool_comes_back_after_every_worker_was_killed(
    supervise: Callable[..., "Supervisor"], client: Any
) -> None:
    supervisor = supervise("app:broker", "--workers", "4").wait_ready()
    before = supervisor.worker_pids()
    killed = [psutil.Process(pid) for pid in before]
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, timeout=30)
    tasks = [await client.block.kiq(0.2) for _ in range(4)]
    after = {(await task.wait_result(timeout=30)).return_value for task in tasks}
    assert after.isdisjoint(before)
    assert [worker["state"] for worker in supervisor.status()["workers"]] == ["ready"] * 4
    assert supervisor.stop() == 0
