"""Stopping: what runs may finish, what can't is given back, and nothing is left behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor


def left_files() -> list[Path]:
    runtime = Path(os.environ["TASKIQ_SUPERVISE_RUNTIME_DIR"])
    return [path for path in runtime.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize("task_name", ["hold", "hold_async"])
@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_task_finishes_before_the_supervisor_does(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
    task_name: str,
    stop_signal: signal.Signals,
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    tree = supervisor.tree()
    task = await getattr(client, task_name).kiq("running")
    bell.wait()
    supervisor.process.send_signal(stop_signal)
    # The idle worker has gone, and the busy one takes nothing any more.
    supervisor.log.wait_for("exited with status 0")
    supervisor.log.wait_for("Waiting for 1 running task")
    after = await client.record.kiq(1)
    gate.let_by(1)
    assert (await task.wait_result(timeout=30)).return_value == "running"
    assert supervisor.wait() == 0
    supervisor.log.wait_for_end(timeout=1)
    assert supervisor.alive(tree) == []
    assert left_files() == []
    assert ledger.counts("hold") == {"running": 1}

    # What was sent during the stop waits for the next start.
    assert ledger.counts("record") == {}
    supervise("app:broker")
    assert (await after.wait_result(timeout=30)).return_value == 1


@pytest.mark.parametrize("task_name", ["hold", "hold_async"])
async def test_a_task_that_outlives_the_graceful_timeout_is_given_back_for_the_next_start(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
    task_name: str,
) -> None:
    first = supervise("app:broker", "--workers", "2", "--graceful-timeout", "1").wait_ready()
    task = await getattr(client, task_name).kiq("long")
    bell.wait()
    assert first.stop() == 0
    assert left_files() == []
    if task_name == "hold_async":
        assert ledger.counts("cancelled") == {"long": 1}

    gate.let_by(1)
    supervise("app:broker")
    assert (await task.wait_result(timeout=30)).return_value == "long"
    assert ledger.counts("hold") == {"long": 2}


async def test_giving_back_is_not_counted_as_a_death(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    task = await client.hold.kiq("patient")
    arguments = ("app:broker", "--workers", "1", "--max-deliveries", "1")
    for _ in range(2):
        supervisor = supervise(*arguments, "--graceful-timeout", "0")
        bell.wait()
        assert supervisor.stop() == 0
    gate.let_by(1)
    supervise(*arguments)
    assert (await task.wait_result(timeout=30)).return_value == "patient"
    assert ledger.counts("hold") == {"patient": 3}


async def test_a_second_sigterm_gives_back_without_waiting(
    supervise: Callable[..., "Supervisor"], client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--graceful-timeout", "600").wait_ready()
    task = await client.hold.kiq("long")
    bell.wait()
    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.log.wait_for("drain")
    assert supervisor.stop() == 0
    gate.let_by(1)
    supervise("app:broker")
    assert (await task.wait_result(timeout=30)).return_value == "long"


async def test_sigquit_stops_at_once_and_loses_nothing(
    supervise: Callable[..., "Supervisor"], client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--graceful-timeout", "600").wait_ready()
    task = await client.hold.kiq("long")
    bell.wait()
    supervisor.process.send_signal(signal.SIGQUIT)
    supervisor.wait()
    supervisor.log.wait_for_end(timeout=5)
    gate.let_by(1)
    supervise("app:broker")
    assert (await task.wait_result(timeout=30)).return_value == "long"


async def test_sigterm_before_the_workers_are_ready_is_obeyed(
    supervise: Callable[..., "Supervisor"], app: Any
) -> None:
    supervisor = supervise("app:broker")
    supervisor.log.wait_for(".")
    assert supervisor.stop() == 0
    assert left_files() == []


async def test_sigterm_to_one_worker_drains_it_and_another_takes_its_place(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    ledger: "Ledger",
    bell: "Bell",
    gate: "Gate",
) -> None:
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    task = await client.hold.kiq("finishing")
    _, pid = bell.wait()
    os.kill(pid, signal.SIGTERM)
    gate.let_by(2)
    assert (await task.wait_result(timeout=30)).return_value == "finishing"
    second = await client.hold.kiq("next")
    assert (await second.wait_result(timeout=30)).return_value == "next"
    assert ledger.pids("hold") == {pid, supervisor.worker_pids()[0]}
    assert ledger.counts("hold") == {"finishing": 1, "next": 1}
