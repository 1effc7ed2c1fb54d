"""`--transport zmq`: listener and workers joined by sockets, without a queue in shared memory."""

import asyncio
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from taskiq_supervise.broker import WorkerLostError

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]
PATIENCE = 60.0
ZMQ = ("--transport", "zmq")


@pytest.fixture
def application(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("E2E_ADDRESS", f"ipc://{workdir}/socket")
    shutil.copyfile(Path(__file__).with_name("zeromq_application.py"), workdir / "app.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    del sys.modules["app"]


@pytest.fixture
async def client(application: ModuleType) -> Any:
    await application.broker.startup()
    yield application
    await application.broker.shutdown()


def listener_pid(supervisor: "Supervisor") -> int:
    pid: int = supervisor.pool_status()["listener"]["pid"]
    return pid


def queue_folders() -> "list[Path]":
    base = os.environ.get("TASKIQ_SUPERVISE_QUEUE_DIR")
    assert base is not None, "tests have queues of their own"
    return list(Path(base).glob("*/segment"))


async def test_tasks_run_once_send_others_and_are_retried_without_a_segment(
    client: Any, supervise: Start, ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2", *ZMQ).wait_ready()
    names = [f"task-{number}" for number in range(100)]
    tasks = [await client.record.kiq(name) for name in names]
    for name, task in zip(names, tasks, strict=True):
        assert (await task.wait_result(timeout=PATIENCE)).return_value == name
    relayed = await client.relay.kiq("a")
    assert (await relayed.wait_result(timeout=PATIENCE)).return_value == "a-relayed"
    flaky = await client.flaky.kiq("b")
    assert (await flaky.wait_result(timeout=PATIENCE)).return_value == 2
    assert ledger.counts("record") == dict.fromkeys([*names, "a-relayed"], 1)
    assert queue_folders() == []


async def test_a_killed_worker_s_task_runs_again_at_once(
    client: Any, supervise: Start, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2", *ZMQ).wait_ready()
    task = await client.hold.kiq("a")
    _, pid = await asyncio.to_thread(bell.wait)
    os.kill(pid, signal.SIGKILL)
    _, again = await asyncio.to_thread(bell.wait)
    assert again != pid
    gate.let_by(1)
    assert (await task.wait_result(timeout=PATIENCE)).return_value == "a"
    assert ledger.counts("hold") == {"a": 1}


async def test_a_task_that_kills_each_worker_is_an_error_that_names_the_signal(
    client: Any, supervise: Start, bell: "Bell"
) -> None:
    supervise("app:broker", "--workers", "1", *ZMQ).wait_ready()
    task = await client.hold.kicker().with_labels(max_deliveries=2).kiq("a")
    for _ in range(2):
        _, pid = await asyncio.to_thread(bell.wait)
        os.kill(pid, signal.SIGKILL)
    result = await task.wait_result(timeout=PATIENCE)
    assert isinstance(result.error, WorkerLostError)
    assert (result.error.signal, result.error.attempts) == (signal.SIGKILL, 2)
    assert result.error.worker == 0


async def test_a_killed_listener_costs_no_task_and_doubles_none(
    client: Any, supervise: Start, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2", *ZMQ).wait_ready()
    held = await client.hold.kiq("held")
    await asyncio.to_thread(bell.wait)
    tasks = []
    for number in range(60):
        if number % 20 == 10:
            os.kill(await asyncio.to_thread(listener_pid, supervisor), signal.SIGKILL)
        tasks.append(await client.record.kiq(f"task-{number}"))
    gate.let_by(1)
    for task in (held, *tasks):
        assert not (await task.wait_result(timeout=PATIENCE)).is_err
    assert set(ledger.counts("record").values()) == {1}
    assert len(ledger.counts("record")) == 60
    assert ledger.counts("hold") == {"held": 1}


async def test_what_waits_survives_the_supervisor(
    client: Any, supervise: Start, ledger: "Ledger"
) -> None:
    first = supervise("app:broker", "--workers", "1", *ZMQ).wait_ready()
    tasks = [
        await client.record.kicker().with_labels(delay=2).kiq(f"task-{number}")
        for number in range(5)
    ]
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.to_thread(first.process.wait)
    supervise("app:broker", "--workers", "1", *ZMQ).wait_ready()
    for task in tasks:
        assert not (await task.wait_result(timeout=PATIENCE)).is_err
    assert set(ledger.counts("record").values()) == {1}


def test_a_shared_memory_broker_is_refused_and_the_other_one_named(supervise: Start) -> None:
    Path("shm.py").write_text(
        "from taskiq_supervise import SharedMemoryBroker\nbroker = SharedMemoryBroker()\n"
    )
    supervisor = supervise("shm:broker", *ZMQ)
    supervisor.log.wait_for(r"use taskiq_supervise\.ZeroMQBroker")
    assert supervisor.process.wait(PATIENCE) != 0
