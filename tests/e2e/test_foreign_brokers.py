"""A pool on a broker that would hand each task to each worker: each task runs once, on them all."""

import asyncio
import importlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from taskiq.utils import maybe_awaitable
from tests.e2e.conftest import PATIENCE, ended

from taskiq_supervise.broker import TaskTimeoutError, WorkerLostError
from taskiq_supervise.supervisor.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]


@pytest.fixture
def app(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """On an address of its own, which it names as the issue's example does: by `localhost`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("E2E_ADDRESS", f"tcp://localhost:{port}")
    here = Path(__file__).parent
    shutil.copyfile(here / "listener_application.py", workdir / "app.py")
    shutil.copyfile(here / "file_results.py", workdir / "file_results.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    del sys.modules["app"], sys.modules["file_results"]
    for broker in (module.broker, module.smart, module.slow):
        broker.context.destroy(linger=0)


@asynccontextmanager
async def started(broker: Any) -> AsyncIterator[Any]:
    """The broker on the side of its client."""
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()
        broker.socket.close(linger=0)


async def kick(broker: Any, task: str, *arguments: Any, **labels: Any) -> Any:
    return await broker.find_task(task).kicker().with_labels(**labels).kiq(*arguments)


async def heard(broker: Any, ledger: "Ledger") -> None:
    """Until what is published arrives: subscriptions are not acknowledged, so it is tried."""
    before = ledger.counts("record").get("-1", 0)

    async def tried() -> bool:
        await kick(broker, "record", -1)
        return ledger.counts("record").get("-1", 0) > before

    await until(tried)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """For what happens in files, which ring no bell here."""
    deadline = time.monotonic() + PATIENCE
    while not await maybe_awaitable(condition()):
        assert time.monotonic() < deadline, "it has not come true"
        await asyncio.sleep(0.02)


def once(names: Iterable[Any]) -> dict[str, int]:
    return {str(name): 1 for name in names}


def records(ledger: "Ledger") -> dict[str, int]:
    counts = ledger.counts("record")
    counts.pop("-1", None)
    return counts


def listener_pid(supervisor: "Supervisor", generation: int) -> int:
    return int(supervisor.log.wait_for(rf"listener gen={generation} pid=(\d+) ready")[1])


async def test_each_of_a_hundred_tasks_runs_once_on_four_workers(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "4").wait_ready()
    supervisor.log.wait_for(r"one process listens on tcp://127.0.0.1:\d+ for all 4 workers")
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        tasks = [await kick(broker, "record", number) for number in range(100)]
        results = [await task.wait_result(timeout=PATIENCE) for task in tasks]
    assert [result.return_value for result in results] == list(range(100))
    assert supervisor.stop() == 0
    assert records(ledger) == once(range(100))


async def test_all_workers_take_tasks(
    app: ModuleType, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervise("app:broker", "--workers", "4").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        tasks = [await kick(broker, "hold", number) for number in range(4)]
        pids = {(await asyncio.to_thread(bell.wait))[1] for _ in tasks}
        assert len(pids) == 4
        gate.let_by(4)
        for task in tasks:
            assert not (await task.wait_result(timeout=PATIENCE)).is_err


async def test_a_task_can_send_tasks(app: ModuleType, supervise: Start, ledger: "Ledger") -> None:
    supervise("app:broker", "--workers", "2").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        task = await kick(broker, "relay", 5)
        sent = (await task.wait_result(timeout=PATIENCE)).return_value
        await until(lambda: Path("results", sent).exists())
    assert records(ledger) == once([5])


@pytest.mark.parametrize("name", ["broker", "smart"])
async def test_retry_middlewares_work(
    name: str, app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervise(f"app:{name}", "--workers", "2").wait_ready()
    async with started(getattr(app, name)) as broker:
        await heard(broker, ledger)
        begun = time.monotonic()
        task = await kick(broker, "flaky", 1)
        await until(lambda: ledger.counts("flaky") == {"1": 3})
        if name == "smart":  # it waits for its delays, though this broker knows none
            assert time.monotonic() - begun >= 0.6

        async def succeeded() -> bool:
            return await task.is_ready() and not (await task.get_result()).is_err

        await until(succeeded)
        assert (await task.get_result()).return_value == "after 2 retries"


async def test_a_listener_that_was_killed_is_back_and_the_queue_is_as_it_was(
    app: ModuleType, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "1", "--max-async-tasks", "1").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        tasks = [await kick(broker, "hold", number) for number in range(20)]
        await asyncio.to_thread(bell.wait)
        await until(lambda: supervisor.pool_status()["queue"]["ready"] == 19)
        first = listener_pid(supervisor, 1)
        os.kill(first, signal.SIGKILL)
        assert await asyncio.to_thread(listener_pid, supervisor, 2) != first
        gate.let_by(20)
        for task in tasks:
            assert not (await task.wait_result(timeout=PATIENCE)).is_err
        await heard(broker, ledger)
    assert ledger.counts("held") == once(range(20))


async def test_listeners_that_are_killed_under_load_double_nothing(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        sent = 0
        for generation in (1, 2, 3):
            killed = sent + 100
            while sent < killed + 100:
                await kick(broker, "record", sent)
                sent += 1
                await asyncio.sleep(0.001)
                if sent == killed:
                    os.kill(listener_pid(supervisor, generation), signal.SIGKILL)
            await asyncio.to_thread(listener_pid, supervisor, generation + 1)
            await heard(broker, ledger)
        await until(lambda: supervisor.pool_status()["queue"]["leased"] == 0)
    assert set(records(ledger).values()) == {1}
    assert len(records(ledger)) >= 300  # what came before each death, at the least


@pytest.mark.parametrize("name", ["broker", "slow"])
async def test_a_reload_under_load_loses_and_doubles_nothing(
    name: str, app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervisor = supervise(f"app:{name}", "--workers", "2").wait_ready()
    async with started(getattr(app, name)) as broker:
        await heard(broker, ledger)
        sent = 0
        stopping = asyncio.Event()

        async def send() -> None:
            nonlocal sent
            while not stopping.is_set():
                await kick(broker, "record", sent)
                sent += 1
                await asyncio.sleep(0.002)

        sending = asyncio.create_task(send())
        first = listener_pid(supervisor, 1)
        for generation in (2, 3):
            done = await asyncio.to_thread(Client(f"app-{name}").reload, wait=True)
            assert done["ok"], done
            await asyncio.to_thread(listener_pid, supervisor, generation)
        assert await asyncio.to_thread(ended, first, PATIENCE)
        before = sent
        await until(lambda: sent >= before + 100)
        stopping.set()
        await sending
        await until(lambda: len(records(ledger)) == sent)
    assert records(ledger) == once(range(sent))


async def test_a_task_that_kills_its_workers_is_a_result_of_the_users_backend(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        task = await kick(broker, "die", 1)
        result = await task.wait_result(timeout=PATIENCE)
    assert isinstance(result.error, WorkerLostError)
    assert (result.error.task, result.error.attempts) == ("die", 3)
    assert ledger.counts("die") == {"1": 3}


async def test_a_task_that_was_acknowledged_before_its_worker_died_is_told_too(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2", "--ack-type", "when_received").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        task = await kick(broker, "die", 1)
        result = await task.wait_result(timeout=PATIENCE)
    assert isinstance(result.error, WorkerLostError)
    assert result.error.acknowledged
    assert ledger.counts("die") == {"1": 1}


async def test_a_hard_time_limit_is_a_result_of_the_users_backend(
    app: ModuleType, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervise("app:broker", "--workers", "1").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        task = await kick(broker, "hold", 1, hard_timeout=0.3)
        result = await task.wait_result(timeout=PATIENCE)
        assert isinstance(result.error, TaskTimeoutError)
        await heard(broker, ledger)
    assert ledger.counts("hold") == {"1": 1}
    assert not ledger.counts("held")


async def test_a_hard_time_limit_is_one_too_where_its_worker_could_not_say_so(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "1").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)
        task = await kick(broker, "block", 1, hard_timeout=0.3)
        result = await task.wait_result(timeout=PATIENCE)
    assert isinstance(result.error, TaskTimeoutError)
    assert ledger.counts("block") == {"1": 1}


async def test_an_unknown_task_is_a_result_of_the_users_backend(
    app: ModuleType, supervise: Start, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "1").wait_ready()
    async with started(app.broker) as broker:
        await heard(broker, ledger)

        @broker.task("elsewhere")  # type: ignore[untyped-decorator]
        async def elsewhere() -> None:
            return

        result = await (await elsewhere.kiq()).wait_result(timeout=PATIENCE)
    assert "elsewhere" in str(result.error)


@pytest.mark.parametrize("ack_type", ["when_received", "when_executed", "when_saved"])
async def test_a_message_is_acknowledged_when_its_task_was(
    ack_type: str, app: ModuleType, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervise("app:mail", "--workers", "2", "--ack-type", ack_type).wait_ready()
    task = await kick(app.mail, "hold", 1)
    await asyncio.to_thread(bell.wait)
    if ack_type == "when_received":
        await until(lambda: ledger.counts("ack") == once([task.task_id]))
    else:
        # What came later is acknowledged, this one is not: it has not been executed.
        other = await kick(app.mail, "record", 2)
        await until(lambda: ledger.counts("ack") == once([other.task_id]))
    assert not ledger.counts("held")
    gate.let_by(1)
    await until(lambda: ledger.counts("ack").get(task.task_id) == 1)
    await until(lambda: Path("results", task.task_id).exists())
    assert ledger.counts("hold") == {"1": 1}


async def test_what_a_killed_listener_had_not_acknowledged_runs_once_all_the_same(
    app: ModuleType, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:mail", "--workers", "1").wait_ready()
    task = await kick(app.mail, "hold", 1)
    await asyncio.to_thread(bell.wait)
    os.kill(listener_pid(supervisor, 1), signal.SIGKILL)
    await asyncio.to_thread(listener_pid, supervisor, 2)
    await until(lambda: ledger.counts("given") == {task.task_id: 2})
    assert not ledger.counts("ack")
    gate.let_by(1)
    await until(lambda: ledger.counts("ack") == once([task.task_id]))
    assert ledger.counts("held") == {"1": 1}
