"""What the service manager hears, on a socket like its own."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from taskiq_supervise.supervisor import service_manager
from taskiq_supervise.supervisor.core.model import (
    Pool,
    Reload,
    ReloadStage,
    Settings,
    Worker,
    WorkerState,
    new_pool,
)
from taskiq_supervise.supervisor.notify import Notifier, watchdog_interval
from taskiq_supervise.supervisor.service_manager import Look, Pace, ServiceManager, sentence


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    async def hears(self) -> dict[str, str]:
        data = await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(self.socket, 65536), timeout=10
        )
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def has_heard(self) -> bool:
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return False
        return True

    def hear_no_more(self) -> None:
        """Of what was said until now."""
        while self.has_heard():
            continue

    async def hears_of(self, key: str) -> dict[str, str]:
        """The first message with this key."""
        while True:
            message = await self.hears()
            if key in message:
                return message


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    made = Manager(path if request.param == "path" else f"@taskiq-supervise/{uuid.uuid4()}")
    yield made
    made.socket.close()


# --- the protocol ---------------------------------------------------------------------------------


async def test_a_message_is_one_datagram_of_lines(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    assert notifier.send(READY=1, STATUS="two\nlines")
    assert await manager.hears() == {"READY": "1", "STATUS": "two lines"}
    notifier.close()


def test_the_address_is_nobody_else_s(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": "/bin"}
    notifier = Notifier.take_from(environment)
    assert notifier.heard
    assert environment == {"PATH": "/bin"}
    notifier.close()


def test_without_an_address_nothing_is_sent() -> None:
    notifier = Notifier.take_from({})
    assert not notifier.heard
    assert not notifier.send(READY=1)


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    assert not notifier.send(READY=1)
    notifier.close()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    while notifier.send(STATUS="x" * 1000):
        continue
    notifier.close()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a path nor @NAME"):
        Notifier("vsock:2:1")


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "2000000"}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only(environment: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(environment) == interval
    assert not environment


# --- what is said ---------------------------------------------------------------------------------


def pool_of(*states: WorkerState, target: int | None = None) -> Pool:
    workers = tuple(Worker(slot=slot, state=state) for slot, state in enumerate(states))
    settings = Settings(workers=len(states) if target is None else target)
    return replace(new_pool(settings), workers=workers)


READY = WorkerState.READY
BOOTING = WorkerState.BOOTING
DRAINING = WorkerState.DRAINING


@pytest.mark.parametrize(
    ("look", "per_minute", "said"),
    [
        (
            Look(pool_of(READY, READY), 0, 0, 0),
            1234,
            "2 workers ready · 0 queued · 1,234 tasks/min",
        ),
        (Look(pool_of(READY), None, 0, 0), 0, "1 worker ready · 0 tasks/min"),
        (
            Look(pool_of(READY, BOOTING), 7, 0, 0),
            0,
            "1 of 2 workers ready · 7 queued · 0 tasks/min",
        ),
        (
            Look(replace(pool_of(DRAINING), exit_code=0), 7, 1, 0),
            0,
            "stopping: 1 task still runs",
        ),
    ],
)
def test_the_status_is_a_sentence(look: Look, per_minute: int, said: str) -> None:
    assert sentence([look], per_minute, "") == said


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.per_minute(0, 100.0) == 0
    assert pace.per_minute(30, 130.0) == 30
    assert pace.per_minute(60, 160.0) == 60
    assert pace.per_minute(60, 220.0) == 0


class Service:
    """A manager's other side, whose pool the test changes."""

    def __init__(self, manager: Manager, pool: Pool, watchdog: float | None = None) -> None:
        self.pool = pool
        self.notifier = Notifier(manager.address)
        self.manager = ServiceManager(
            asyncio.get_running_loop(),
            self.notifier,
            watchdog,
            lambda: [self.pool],
            lambda: [Look(self.pool, 3, 1, 0)],
        )
        self.manager.start()

    def close(self) -> None:
        self.manager.close()
        self.notifier.close()

    def becomes(self, pool: Pool) -> None:
        self.pool = pool
        self.manager.changed()


async def test_ready_comes_with_the_whole_pool_and_once(manager: Manager) -> None:
    service = Service(manager, pool_of(BOOTING, BOOTING))
    assert await manager.hears() == {"STATUS": "0 of 2 workers ready · 3 queued · 0 tasks/min"}
    service.becomes(pool_of(READY, BOOTING))
    assert "READY" not in await manager.hears()
    up = replace(pool_of(READY, READY), announced=True)
    service.becomes(up)
    message = await manager.hears()
    assert message == {"READY": "1", "STATUS": "2 workers ready · 3 queued · 0 tasks/min"}
    service.becomes(replace(pool_of(READY, BOOTING), announced=True))
    assert "READY" not in await manager.hears()
    service.close()


async def test_a_reload_has_a_beginning_and_an_end(manager: Manager) -> None:
    up = replace(pool_of(READY), announced=True)
    service = Service(manager, up)
    await manager.hears_of("READY")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.becomes(replace(up, reload=Reload(1, ReloadStage.LOADING)))
    message = await manager.hears_of("RELOADING")
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    service.manager.reload_ended("", "SyntaxError: invalid syntax\nmore")
    service.becomes(up)
    message = await manager.hears_of("READY")
    assert message["STATUS"].startswith(
        "reload rolled back: SyntaxError: invalid syntax · 1 worker"
    )
    service.close()


async def test_a_stop_gets_more_time_while_it_goes_on(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "EXTENSION", 0.3)
    up = replace(pool_of(READY), announced=True)
    service = Service(manager, up)
    await manager.hears_of("READY")
    service.becomes(replace(pool_of(DRAINING), announced=True, exit_code=0))
    message = await manager.hears_of("STOPPING")
    assert message["EXTEND_TIMEOUT_USEC"] == "300000"
    assert message["STATUS"] == "stopping: 1 task still runs"
    for _ in range(3):
        assert (await manager.hears())["EXTEND_TIMEOUT_USEC"] == "300000"
    service.close()


async def test_a_failure_says_how_it_ends(manager: Manager) -> None:
    service = Service(manager, pool_of(BOOTING))
    service.manager.ended(3, "no module 'app'")
    message = await manager.hears_of("EXIT_STATUS")
    assert message == {"STATUS": "no module 'app'", "EXIT_STATUS": "3"}
    service.notifier.send_failure(1, "no room", errno=28)
    message = await manager.hears_of("ERRNO")
    assert message == {"STATUS": "no room", "EXIT_STATUS": "1", "ERRNO": "28"}
    service.close()


async def test_a_failed_reload_is_said_until_the_next_one_of_its_pool_succeeds(
    manager: Manager,
) -> None:
    up = replace(pool_of(READY), announced=True)
    service = Service(manager, up)
    service.manager.reload_ended("mail", "no module 'app'")
    service.manager.reload_ended("shop", None)
    service.manager.changed()
    message = await manager.hears_of("STATUS")
    while "rolled back" not in message["STATUS"]:
        message = await manager.hears_of("STATUS")
    assert message["STATUS"].startswith("reload of pool mail rolled back: no module 'app' · 1 ")
    service.manager.reload_ended("mail", None)
    service.manager.changed()
    assert (await manager.hears_of("STATUS"))["STATUS"].startswith("1 worker ready")
    service.close()


async def test_signs_of_life_stop_with_the_loop(manager: Manager) -> None:
    service = Service(manager, replace(pool_of(READY), announced=True), watchdog=0.05)
    await manager.hears_of("WATCHDOG")
    manager.hear_no_more()
    time.sleep(0.5)  # noqa: ASYNC251 - ten times the interval
    assert not manager.has_heard()
    await manager.hears_of("WATCHDOG")
    service.close()
