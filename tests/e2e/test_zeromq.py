"""Client processes, a supervisor, and our ZeroMQBroker between them; any of them is killed."""

import asyncio
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from taskiq import BrokerMessage

from taskiq_supervise import ConnectionDeniedError, ZeroMQBroker
from taskiq_supervise.broker.zeromq.keys import KeyPair

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]
PATIENCE = 60.0


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(params=["ipc"])
def address(request: pytest.FixtureRequest, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the pool listens; for "curve" there are keys, too."""
    if request.param == "curve":
        (workdir / "keys").mkdir()
        KeyPair.new().save(workdir / "keys", "server")
        KeyPair.new().save(workdir / "keys", "client", public_folder=workdir / "keys/clients")
    found = {
        "ipc": lambda: f"ipc://{workdir}/socket",
        "tcp": lambda: f"tcp://127.0.0.5:{free_port('127.0.0.5')}",
        "tcp6": lambda: f"tcp://[::1]:{free_port('::1')}",
        "curve": lambda: f"tcp://127.0.0.1:{free_port('127.0.0.1')}",
    }[request.param]()
    monkeypatch.setenv("E2E_ADDRESS", found)
    return found


everywhere = pytest.mark.parametrize("address", ["ipc", "tcp", "tcp6", "curve"], indirect=True)


@pytest.fixture
def application(
    address: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    here = Path(__file__).parent
    shutil.copyfile(here / "zeromq_application.py", workdir / "app.py")
    shutil.copyfile(here / "zeromq_client.py", workdir / "client.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    del sys.modules["app"]


@pytest.fixture
async def client(application: ModuleType) -> Any:
    await application.broker.startup()
    yield application
    await application.broker.shutdown()


@pytest.fixture
def run_client(application: ModuleType) -> Iterator[Callable[[str, int], "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(name: str, count: int) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "client.py", name, str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def accepted() -> list[str]:
    path = Path("accepted")
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def have_accepted(count: int, *clients: "subprocess.Popen[str]") -> None:
    """Waits until `kiq()` has returned so many times more in each of them."""
    for process in clients:
        assert process.stdout is not None
        for _ in range(count):
            assert process.stdout.readline(), "the client has ended"


# --- running -------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("first", ["clients", "supervisor"])
def test_two_clients_and_a_supervisor_started_in_any_order(
    first: str, supervise: Start, run_client: Any, ledger: "Ledger"
) -> None:
    clients = []
    if first == "clients":
        clients = [run_client(name, 100) for name in ("a", "b")]
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    clients = clients or [run_client(name, 100) for name in ("a", "b")]
    for process in clients:
        finish(process)
    expected = {f"{name}-{number}": 1 for name in ("a", "b") for number in range(100)}
    assert ledger.counts("record") == expected
    assert len(ledger.pids("record")) == 2
    assert supervisor.stop() == 0


async def test_tasks_send_tasks_wait_for_them_and_are_retried(
    supervise: Start, client: Any, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    relayed = await (await client.relay.kiq("x")).wait_result(timeout=PATIENCE)
    assert relayed.return_value == "x-relayed"
    task = await client.flaky.kiq("y")
    result = await task.wait_result(timeout=PATIENCE)
    assert (result.is_err, result.return_value) == (False, 2)
    assert ledger.counts("flaky") == {"y": 3}
    assert supervisor.stop() == 0


async def test_a_worker_that_dies_gives_its_task_back(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "2").wait_ready()
    waiting = asyncio.create_task((await client.hold.kiq("a")).wait_result(timeout=PATIENCE))
    _, pid = await asyncio.to_thread(bell.wait)
    os.kill(pid, signal.SIGKILL)
    _, again = await asyncio.to_thread(bell.wait)
    assert again != pid
    gate.let_by(1)
    assert (await waiting).return_value == "a"
    assert ledger.counts("hold") == {"a": 1}


# --- killing -------------------------------------------------------------------------------------


def test_a_listener_that_is_killed_costs_no_task_and_doubles_none(
    supervise: Start, run_client: Any, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    clients = [run_client(name, 500) for name in ("a", "b")]
    for kill in range(1, 4):
        have_accepted(75, *clients)
        os.kill(supervisor.pool_status()["listener"]["pid"], signal.SIGKILL)
        supervisor.log.wait_for(rf"listener gen={kill + 1} pid=\d+ ready")
    for process in clients:
        finish(process)
    assert set(ledger.counts("record").values()) == {1}
    assert len(ledger.counts("record")) == 1000
    assert supervisor.stop() == 0


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_clients_that_send_live_through_a_restart_of_the_supervisor(
    how: str, supervise: Start, run_client: Any, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    clients = [run_client(name, 500) for name in ("a", "b")]
    have_accepted(100, *clients)
    if how == "stopped":
        assert supervisor.stop() == 0
    else:
        supervisor.kill_everything()
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    for process in clients:
        finish(process)
    counts = ledger.counts("record")
    assert len(counts) == 1000
    # Killed workers had begun some: these may have been run twice.
    assert set(counts.values()) <= ({1} if how == "stopped" else {1, 2})
    assert supervisor.stop() == 0


def test_what_a_client_had_accepted_is_run_without_it(
    supervise: Start, run_client: Any, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    process = run_client("a", 100_000)
    have_accepted(200, process)
    process.kill()
    process.wait()
    assert supervisor.stop() == 0
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    finish(run_client("b", 1))  # behind all of a's
    assert set(accepted()) <= set(ledger.counts("record"))
    assert set(ledger.counts("record").values()) == {1}
    assert supervisor.stop() == 0


# --- who may -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["ipc", "tcp"], indirect=True)
def test_a_second_supervisor_on_the_address_refuses_and_names_the_first(
    supervise: Start, application: ModuleType, address: str
) -> None:
    supervisor = supervise("app:broker", "--name", "first").wait_ready()
    second = supervise("app:broker", "--name", "second")
    assert second.wait() == 4
    second.log.wait_for(rf"'first' \(pid {supervisor.pid}\)")
    assert supervisor.stop() == 0


@pytest.mark.parametrize("address", ["curve"], indirect=True)
async def test_a_client_whose_key_is_not_known_is_refused(
    supervise: Start, client: Any, address: str
) -> None:
    KeyPair.new().save(Path("keys"), "stranger")
    supervise("app:broker").wait_ready()
    await client.record.kiq("known")
    keys = {**client.KEYS, "client_secret_key": "keys/stranger.key_secret"}
    stranger = ZeroMQBroker(address, **keys)
    async with stranger:
        message = BrokerMessage(task_id="x", task_name="record", message=b"{}", labels={})
        with pytest.raises(ConnectionDeniedError, match="does not know this client's key"):
            await stranger.kick(message)


def test_what_would_be_open_to_everybody_does_not_start(
    supervise: Start, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(Path(__file__).with_name("zeromq_application.py"), workdir / "app.py")
    monkeypatch.setenv("E2E_ADDRESS", "tcp://0.0.0.0:5999")
    supervisor = supervise("app:broker")
    assert supervisor.wait() == 3
    supervisor.log.wait_for("without keys lets everybody in that network send tasks")


def test_an_address_that_can_never_be_bound_does_not_start(
    supervise: Start, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(Path(__file__).with_name("zeromq_application.py"), workdir / "app.py")
    monkeypatch.setenv("E2E_ADDRESS", f"ipc://{workdir}/none/socket")
    supervisor = supervise("app:broker")
    assert supervisor.wait() == 3
    supervisor.log.wait_for("the listener cannot be started: .*No such file or directory: 'ipc://")
    assert supervisor.log.text.count("No such file") == 1
