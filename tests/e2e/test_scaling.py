"""Scaling: by command, by signal, by itself; who leaves finishes its tasks first."""

import asyncio
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.conftest import COMMAND

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

ONE_AT_A_TIME = ("--max-async-tasks", "1")


async def scale(number: str) -> tuple[int | None, str]:
    """The command's exit status, and what it says."""
    pipe = asyncio.subprocess.PIPE
    command = (*COMMAND, "scale", number)
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    output, errors = await process.communicate()
    return process.returncode, (output + errors).decode()


def states(supervisor: "Supervisor") -> list[tuple[int, str]]:
    return [(worker["slot"], worker["state"]) for worker in supervisor.status()["workers"]]


async def test_by_command_or_signal_it_grows_at_once_and_who_leaves_ends_its_task_first(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    arguments = ("app:broker", "--workers", "1", "--graceful-timeout", "600", *ONE_AT_A_TIME)
    supervisor = supervise(*arguments).wait_ready()
    held = [await client.hold.kiq(f"held-{number}") for number in range(3)]
    bell.wait()
    assert await scale("3") == (0, "app-broker: 1 -> 3 workers\n")
    # The two that nobody took are run by the new ones.
    pids = {bell.wait()[1] for _ in range(2)}
    assert states(supervisor) == [(slot, "ready") for slot in range(3)]

    assert await scale("-2") == (0, "app-broker: 3 -> 1 workers\n")
    assert states(supervisor) == [(0, "ready"), (1, "draining"), (2, "draining")]
    assert pids < set(supervisor.worker_pids())
    after = await client.record.kiq(1)
    gate.let_by(3)
    results = [await task.wait_result(timeout=30) for task in [*held, after]]
    assert [result.return_value for result in results] == ["held-0", "held-1", "held-2", 1]
    for slot in (1, 2):
        supervisor.log.wait_for(rf"worker={slot} gen=1 .* exited with status 0: scaled down")
    assert states(supervisor) == [(0, "ready")]
    assert ledger.pids("record") == set(supervisor.worker_pids())
    assert ledger.counts("hold") == {f"held-{number}": 1 for number in range(3)}

    # Who comes back to a slot is a new worker in it.
    assert await scale("+1") == (0, "app-broker: 1 -> 2 workers\n")
    supervisor.log.wait_for(r"worker=1 gen=2 pid=\d+ ready")
    for number in ("0", "501", "-2"):
        status, said = await scale(number)
        assert status == 1
        assert "not between 1 and 500" in said
    assert states(supervisor) == [(0, "ready"), (1, "ready")]

    supervisor.process.send_signal(signal.SIGTTIN)
    supervisor.log.wait_for(r"worker=2 gen=2 pid=\d+ ready")
    for slot in (2, 1):
        supervisor.process.send_signal(signal.SIGTTOU)
        supervisor.log.wait_for(rf"worker={slot} gen=2 .* exited with status 0: scaled down")
    supervisor.process.send_signal(signal.SIGTTOU)
    supervisor.log.wait_for("SIGTTOU: it stays at 1 worker")
    assert supervisor.pool_status()["target"] == 1
    assert states(supervisor) == [(0, "ready")]
    assert supervisor.stop() == 0
    assert len(re.findall("WARNING|ERROR", supervisor.log.without_tasks)) == 1


async def test_by_itself_it_grows_while_tasks_wait_and_not_beyond_its_bounds(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    bounds = ("--min-workers", "1", "--max-workers", "3", *ONE_AT_A_TIME)
    supervisor = supervise("app:broker", "--workers", "2", *bounds).wait_ready()
    held = [await client.hold.kiq(f"held-{number}") for number in range(5)]
    assert len({bell.wait()[1] for _ in range(3)}) == 3
    supervisor.log.wait_for(r"scaled from 2 to 3 workers \(by itself\)")
    # Two tasks wait still; nobody else comes, not by hand either.
    status, said = await scale("4")
    assert status == 1
    assert "not between 1 and 3" in said
    supervisor.process.send_signal(signal.SIGTTIN)
    supervisor.log.wait_for("SIGTTIN: it stays at 3 workers")
    assert supervisor.pool_status()["target"] == 3
    gate.let_by(5)
    results = [await task.wait_result(timeout=30) for task in held]
    assert [result.return_value for result in results] == [f"held-{n}" for n in range(5)]
    assert set(ledger.counts("hold").values()) == {1}
    assert supervisor.stop() == 0
    assert "worker=3" not in supervisor.log.text


@pytest.mark.stress
async def test_by_itself_it_shrinks_after_half_a_minute_of_quiet_and_loses_nothing(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    bounds = ("--min-workers", "1", "--max-workers", "3")
    supervisor = supervise("app:broker", "--workers", "3", *bounds).wait_ready()
    held = [await client.hold_async.kiq(f"held-{number}") for number in range(30)]
    for _ in held:
        bell.wait()
    supervisor.log.wait_for(r"scaled from 3 to 2 workers \(by itself\)", timeout=60)
    assert ledger.counts("held") == {}
    gate.let_by(30)
    for task in held:
        (await task.wait_result(timeout=30)).raise_for_error()
    supervisor.log.wait_for("worker=2 gen=1 .* exited with status 0: scaled down")
    supervisor.log.wait_for(r"scaled from 2 to 1 workers \(by itself\)", timeout=60)
    supervisor.log.wait_for("worker=1 gen=1 .* exited with status 0: scaled down")
    assert set(ledger.counts("hold").values()) == {1}
    assert supervisor.stop() == 0
