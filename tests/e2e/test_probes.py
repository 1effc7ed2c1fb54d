"""What orchestrators ask: by `status --probe`, and over HTTP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.conftest import PATIENCE
from tests.e2e.test_service import WAITS_AT_START

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Supervisor

Start = Callable[..., "Supervisor"]


def probe(which: str, *name: str) -> tuple[int, str]:
    """Exit status, and the one line."""
    done = subprocess.run(
        [sys.executable, "-m", "taskiq_supervise", "status", "--probe", which, *name],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    (line,) = (done.stdout + done.stderr).splitlines()
    return done.returncode, line


def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.load(response)
    finally:
        connection.close()


async def test_from_the_start_to_the_end(
    supervise: Start, client: Any, workdir: Path, bell: "Bell", gate: "Gate"
) -> None:
    (workdir / "service.py").write_text(WAITS_AT_START)
    arguments = ("app:broker", "service", "--workers", "1", "--http", "127.0.0.1:0")
    supervisor = supervise(*arguments)
    served = supervisor.log.wait_for(r"/healthz and /readyz are served on 127\.0\.0\.1:(\d+)")
    port = int(served[1])
    bell.wait()
    lives = f"app-broker: the supervisor answers, pid {supervisor.pid}"
    assert probe("live") == probe("live", "app-broker") == (0, lives)
    assert probe("ready") == (1, "app-broker: it is starting")
    assert ask(port, "/healthz") == (
        200,
        {"ok": True, "reason": f"the supervisor answers, pid {supervisor.pid}"},
    )
    assert ask(port, "/readyz") == (503, {"ok": False, "reason": "it is starting"})

    gate.let_by(1)
    supervisor.wait_ready()
    assert probe("ready") == (0, "app-broker: every pool has a worker that takes tasks")
    assert ask(port, "/readyz")[0] == 200

    held = await client.hold.kiq("one")
    bell.wait()
    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.log.wait_for("stopping: running tasks may finish")
    assert probe("ready") == (1, "app-broker: it is stopping")
    assert ask(port, "/readyz") == (503, {"ok": False, "reason": "it is stopping"})
    assert probe("live")[0] == ask(port, "/healthz")[0] - 200 == 0
    gate.let_by(1)
    await held.wait_result(timeout=PATIENCE)
    assert supervisor.wait() == 0
    assert probe("live")[0] == probe("ready", "app-broker")[0] == 3


@pytest.mark.usefixtures("app")
def test_a_supervisor_that_stands_still_does_not_live(supervise: Start) -> None:
    supervisor = supervise("app:broker").wait_ready()
    supervisor.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED | os.WNOWAIT)
    for which in ("live", "ready"):
        status, line = probe(which)
        assert status == 1
        assert "app-broker has not answered within 2 s" in line
    assert probe("live", "app-broker")[0] == 1
    supervisor.process.send_signal(signal.SIGCONT)
    assert supervisor.stop() == 0


@pytest.mark.usefixtures("app")
def test_an_address_that_is_taken_is_one_line_and_exit_status_4(supervise: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        supervisor = supervise("app:broker", "--http", address)
        assert supervisor.wait() == 4
    *_, last = supervisor.log.wait_for_end().splitlines()
    assert last == f"taskiq-supervise: --http cannot listen on {address}: Address already in use"
    assert "Traceback" not in supervisor.log.text
