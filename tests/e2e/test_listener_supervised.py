"""One process listens for all workers: supervised like them, and gone after them."""

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.e2e.conftest import COMMAND, PATIENCE

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

SERVICE = """
import asyncio, os
from taskiq import AsyncBroker
from app import append

class Pipe(AsyncBroker):
    taskiq_supervise_broadcast = True

    async def kick(self, message):
        with open("messages", "r+b", buffering=0) as pipe:
            pipe.write(message.message + b"\\n")

    async def listen(self):
        reader = asyncio.StreamReader()
        pipe = open("messages", "r+b", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while line := await reader.readline():
                if line == b"block\\n":
                    with open("gate", "rb", buffering=0) as gate:
                        gate.read(1)  # of all things, in the event loop
                else:
                    yield line
        finally:
            transport.close()

broker = Pipe()

@broker.task
async def note(name):
    append("ledger", "note", name, os.getpid())
    append("bell", "note", name, os.getpid())

@broker.task
def hold(name):
    append("bell", "hold", name, os.getpid())
    with open("gate", "rb", buffering=0) as gate:
        gate.read(1)
    append("ledger", "hold", name, os.getpid())
"""


@pytest.fixture
def service(
    app: ModuleType, workdir: Path, bell: "Bell", monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """An application whose broker says that it broadcasts; its messages go through a pipe."""
    (workdir / "service.py").write_text(SERVICE)
    os.mkfifo(workdir / "messages")
    module = importlib.import_module("service")
    yield module
    del sys.modules["service"]


def listener(supervisor: "Supervisor") -> dict[str, Any]:
    found: dict[str, Any] = supervisor.pool_status()["listener"]
    return found


async def run(service: Any, bell: "Bell", numbers: range) -> None:
    for number in numbers:
        await service.note.kiq(number)
    for _ in numbers:
        bell.wait()


async def test_every_task_runs_once_and_killed_it_is_back(
    supervise: Start, service: Any, bell: "Bell", ledger: "Ledger"
) -> None:
    supervisor = supervise("service:broker", "--workers", "3").wait_ready()
    supervisor.log.wait_for("listener: one process listens .* for all 3 workers, because of ")
    await run(service, bell, range(10))
    os.kill(listener(supervisor)["pid"], signal.SIGKILL)
    supervisor.log.wait_for(r"listener gen=1 pid=\d+ killed by SIGKILL; again at once")
    supervisor.log.wait_for(r"listener gen=2 pid=\d+ ready")
    await run(service, bell, range(10, 20))
    assert ledger.counts("note") == {str(number): 1 for number in range(20)}
    found = listener(supervisor)
    assert (found["generation"], found["restarts"], found["state"]) == (2, 1, "ready")
    assert [one["generation"] for one in supervisor.status()["workers"]] == [1, 1, 1]
    assert supervisor.stop() == 0


async def test_on_a_stop_it_is_there_until_the_last_task_has_ended(
    supervise: Start, service: Any, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervisor = supervise("service:broker", "--workers", "2").wait_ready()
    await service.hold.kiq("a")
    bell.wait()
    process = psutil.Process(listener(supervisor)["pid"])
    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.log.wait_for(r"draining: \d workers?; no task is taken")
    assert process.is_running()
    assert listener(supervisor)["state"] == "ready"
    gate.let_by(1)
    assert supervisor.wait() == 0
    exits = re.findall(r"(listener|worker=\d) gen=1 pid=\d+ exited", supervisor.log.wait_for_end())
    assert exits[-1] == "listener"
    assert sorted(exits[:-1]) == ["worker=0", "worker=1"]
    assert ledger.counts("hold") == {"a": 1}


async def test_a_reload_replaces_it_after_the_workers(
    supervise: Start, service: Any, bell: "Bell", ledger: "Ledger"
) -> None:
    supervisor = supervise("service:broker", "--workers", "2").wait_ready()
    supervisor.process.send_signal(signal.SIGHUP)
    supervisor.log.wait_for("reload 1 done: 2 workers")
    supervisor.log.wait_for(r"listener gen=1 pid=\d+ exited with status 0: reload")
    ready = re.findall(r"(listener|worker=\d) gen=2 pid=\d+ ready", supervisor.log.text)
    assert ready == ["worker=0", "worker=1", "listener"]
    await run(service, bell, range(10))
    assert ledger.counts("note") == {str(number): 1 for number in range(10)}
    assert supervisor.stop() == 0


async def test_one_that_hangs_is_said_to_and_replaced(
    supervise: Start, service: Any, bell: "Bell", gate: "Gate", workdir: Path
) -> None:
    limits = ("--hang-warn", "2", "--hang-timeout", "3")
    supervisor = supervise("service:broker", "--workers", "1", *limits).wait_ready()
    (workdir / "messages").write_bytes(b"block\n")
    supervisor.log.wait_for(r"listener gen=1 pid=\d+ hangs: its event loop has been blocked")
    supervisor.log.wait_for(r"listener gen=2 pid=\d+ ready")
    await run(service, bell, range(1))
    assert supervisor.stop() == 0


def test_without_one_there_is_one_worker_which_listens(supervise: Start, service: Any) -> None:
    supervisor = supervise("service:broker", "--workers", "1", "--no-single-listener").wait_ready()
    pool = supervisor.pool_status()
    assert (pool["listener"], pool["transport"]) == (None, "service.Pipe")
    scaled = subprocess.run(
        [*COMMAND, "scale", "2"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (scaled.returncode, "without a listener" in scaled.stderr) == (1, True)
    assert supervisor.stop() == 0


def test_a_second_supervisor_of_an_endpoint_is_refused_and_names_the_first(
    supervise: Start, workdir: Path
) -> None:
    (workdir / "stock.py").write_text(
        "from taskiq import ZeroMQBroker\n"
        f"broker = ZeroMQBroker('ipc://{workdir}/x', 'ipc://{workdir}/x')\n"
    )
    first = supervise("stock:broker", "--name", "shop").wait_ready()
    second = supervise("stock:broker", "--name", "another")
    assert second.wait() == 4
    log = second.log.wait_for_end(timeout=5)
    assert f"is served by the supervisor 'shop' (pid {first.pid}) already" in log
    assert "Traceback" not in log
    assert first.stop() == 0
