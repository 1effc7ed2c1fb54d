"""A supervisor under a service manager, played by a socket: what it says there, and what it wrote.

The same with a real systemd is in tests/systemd.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.conftest import COMMAND, PATIENCE

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Supervisor

Start = Callable[..., "Supervisor"]

WAITS_AT_START = """
import os
from taskiq import TaskiqEvents
from app import append, broker, pass_gate

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state):
    append("bell", "startup", "-", os.getpid())
    await pass_gate()
"""


class Manager:
    """systemd's side of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.heard: list[dict[str, str]] = []

    def hears(self, timeout: float) -> dict[str, str] | None:
        """The next message; None: there was none in so many seconds."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return None
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.heard.append(message)
        return message

    def hears_of(self, key: str, value: str | None = None) -> dict[str, str]:
        """The next message with this key, and this in its value."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            message = self.hears(left)
            if message is not None and key in message and (value or "") in message[key]:
                return message
        raise AssertionError(f"no {key} with {value!r} was heard, but {self.heard}")

    def has_heard_of(self, key: str) -> bool:
        """Until now."""
        while self.hears(0) is not None:
            continue
        return any(key in message for message in self.heard)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(workdir: Path) -> Iterator[Manager]:
    manager = Manager(workdir / "notify")
    yield manager
    manager.close()


@pytest.mark.usefixtures("app")
def test_it_is_ready_when_all_workers_are(
    supervise: Start, manager: Manager, workdir: Path, bell: "Bell", gate: "Gate"
) -> None:
    (workdir / "service.py").write_text(WAITS_AT_START)
    arguments = ("app:broker", "service", "--workers", "2")
    supervisor = supervise(*arguments, environment=manager.environment)
    for _ in range(2):
        bell.wait()
    gate.let_by(1)
    manager.hears_of("STATUS", "1 of 2 workers ready")
    assert not manager.has_heard_of("READY")
    gate.let_by(1)
    assert manager.hears_of("READY")["STATUS"].startswith("2 workers ready · 0 queued · 0 tasks")
    assert supervisor.stop() == 0


@pytest.mark.usefixtures("app")
def test_nobody_below_it_can_speak_for_it(supervise: Start, manager: Manager) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "60000000"}
    supervisor = supervise("app:broker", environment=environment).wait_ready()
    _, *below = supervisor.tree()
    assert len(below) == 3
    for process in below:
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(process.environ())
    assert supervisor.stop() == 0


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("arguments", "file", "code", "said"),
    [
        (("app:missing",), "", 3, "missing"),
        (("broken:broker",), "", 3, "ZeroDivisionError: division by zero"),
        (("app:broker", "--workers", "0"), "", 2, "0 is not in the range"),
        (("app:broker", "--workers", "none"), "", 2, "'none' is not a valid integer"),
        ((), "workers = 0\napp = 'app:broker'\n", 2, "taskiq-supervise.toml: workers: 0 is not"),
        ((), "app = ", 2, "taskiq-supervise.toml: is not TOML"),
        (("app:broker", "--http", "localhost"), "", 2, "'localhost' is not of the form HOST:PORT"),
    ],
    ids=["no broker", "an exception", "a size", "no number", "in the file", "no file", "address"],
)
def test_a_start_that_fails_says_why_and_how_it_ends(
    supervise: Start,
    manager: Manager,
    workdir: Path,
    arguments: tuple[str, ...],
    file: str,
    code: int,
    said: str,
) -> None:
    (workdir / "broken.py").write_text("1 / 0\n")
    if file:
        (workdir / "taskiq-supervise.toml").write_text(file)
    supervisor = supervise(*arguments, environment=manager.environment)
    message = manager.hears_of("EXIT_STATUS")
    assert message["EXIT_STATUS"] == str(code)
    assert said in message["STATUS"]
    assert supervisor.wait() == code
    assert said in supervisor.log.wait_for_end().splitlines()[-1]
    assert not manager.has_heard_of("READY")


@pytest.mark.usefixtures("app")
def test_a_second_one_of_the_same_name_says_so(supervise: Start, manager: Manager) -> None:
    supervise("app:broker").wait_ready()
    second = supervise("app:broker", environment=manager.environment)
    message = manager.hears_of("EXIT_STATUS")
    assert message["EXIT_STATUS"] == "4"
    assert "app-broker" in message["STATUS"]
    assert second.wait() == 4


@pytest.mark.usefixtures("app")
def test_a_reload_that_is_rolled_back_says_so_until_one_succeeds(
    supervise: Start, manager: Manager, workdir: Path
) -> None:
    service = workdir / "service.py"
    service.write_text("")
    supervisor = supervise("app:broker", "service", environment=manager.environment)
    manager.hears_of("READY")
    service.write_text("raise ConnectionError('no server')\n")
    supervisor.process.send_signal(signal.SIGHUP)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert abs(int(manager.hears_of("RELOADING")["MONOTONIC_USEC"]) - now) < PATIENCE * 1e6
    status = manager.hears_of("READY")["STATUS"]
    assert status.startswith("reload rolled back: ")
    assert "ConnectionError: no server · 2 workers ready" in status
    service.write_text("repaired = True\n")
    supervisor.process.send_signal(signal.SIGHUP)
    manager.hears_of("RELOADING")
    assert manager.hears_of("READY")["STATUS"].startswith("2 workers ready")
    assert supervisor.stop() == 0


async def test_a_stop_says_what_it_waits_for_and_gets_more_time(
    supervise: Start, manager: Manager, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", environment=manager.environment)
    manager.hears_of("READY")
    held = await client.hold.kiq("one")
    bell.wait()
    supervisor.process.send_signal(signal.SIGTERM)
    message = manager.hears_of("STOPPING")
    assert message["STATUS"] == "stopping: 1 task still runs"
    assert int(message["EXTEND_TIMEOUT_USEC"]) >= 10e6
    again = manager.hears_of("EXTEND_TIMEOUT_USEC")
    assert "STOPPING" not in again
    gate.let_by(1)
    assert (await held.wait_result(timeout=PATIENCE)).return_value == "one"
    assert supervisor.wait() == 0
    manager.hears_of("STATUS", "stopped")
    assert not manager.has_heard_of("EXIT_STATUS")


@pytest.mark.usefixtures("app")
def test_a_supervisor_that_stands_still_gives_no_sign_of_life(
    supervise: Start, manager: Manager
) -> None:
    interval = 0.2
    environment = {**manager.environment, "WATCHDOG_USEC": str(int(interval * 2e6))}
    supervisor = supervise("app:broker", environment=environment).wait_ready()
    manager.hears_of("WATCHDOG")
    supervisor.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED | os.WNOWAIT)
    while manager.hears(0) is not None:  # from before
        continue
    assert manager.hears(5 * interval) is None
    supervisor.process.send_signal(signal.SIGCONT)
    manager.hears_of("WATCHDOG")
    assert supervisor.stop() == 0


# --- standard error is the journal ----------------------------------------------------------------


def run_into_the_journal(*arguments: str) -> list[str]:
    """Lines of a run whose standard error is, as far as it can know, the journal's."""
    with Path("stderr").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        command = [*COMMAND, *arguments, "--log-style", "text"]
        subprocess.run(command, stderr=stream, env=environment, check=False, timeout=PATIENCE)
        stream.seek(0)
        return stream.read().splitlines()


def test_in_the_journal_each_line_of_a_failure_has_its_priority_and_the_last_says_it_all(
    workdir: Path,
) -> None:
    (workdir / "broken.py").write_text("def settings():\n    return 1 / 0\n\nsettings()\n")
    first, *lines = run_into_the_journal("broken:broker")
    assert first.startswith("<6>[")
    assert all(line.startswith("<3>") for line in lines)
    assert '<3>  File "' in "\n".join(lines)
    assert lines[-1] == (
        "<3>taskiq-supervise: broken:broker cannot be loaded: importing 'broken' failed: "
        "ZeroDivisionError: division by zero"
    )


@pytest.mark.usefixtures("workdir")
def test_in_the_journal_wrong_usage_is_one_line() -> None:
    (line,) = run_into_the_journal("app:broker", "--workers", "0")
    assert line.startswith("<3>taskiq-supervise: Invalid value for '--workers'")
