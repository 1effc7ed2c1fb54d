"""The contestants: a broker, how its workers are started, and a client process beside them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.process import PATIENCE, ROOT, ContestantFailed, Running, places
from benchmarks.zmq.choice import ADDRESS, KIND

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = 2
APPLICATION = "benchmarks.zmq.application:broker"


@dataclass(frozen=True)
class Contestant:
    """kind: of application.py. scheme: of its address. supervised: by us, else by taskiq."""

    name: str
    kind: str
    scheme: str = "tcp"
    supervised: bool = True

    def address(self, folder: Path) -> str:
        if self.scheme == "ipc":
            return f"ipc://{folder}/socket"
        with socket.create_server(("127.0.0.1", 0)) as free:
            return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@dataclass(frozen=True)
class Round:
    said: dict[str, Any]
    """By the client."""
    runs: list[tuple[int, float]]
    """Number and time of each run of a task."""


STOCK = Contestant("taskiq.ZeroMQBroker, `taskiq worker -w 1`", "stock", supervised=False)
OWN_IPC = Contestant("taskiq_supervise.ZeroMQBroker, ipc://, 2 workers", "own", "ipc")
OWN_TCP = Contestant("taskiq_supervise.ZeroMQBroker, tcp://, 2 workers", "own")
FED = Contestant("taskiq.ZeroMQBroker, `taskiq-supervise -w 2`", "stock")
SHARED = Contestant("SharedMemoryBroker, 2 workers", "shm")

_READY = re.compile(rb"ready: \d+ worker")


def play(contestant: Contestant, what: str, count: int) -> Round:
    """One round, in places of its own; nothing is left afterwards. Raises ContestantFailed."""
    with places() as (folder, inside):
        variables = {**inside, KIND: contestant.kind, ADDRESS: contestant.address(folder)}
        running = Running(_start(contestant), variables, folder)
        try:
            if contestant.supervised:
                running.until(_READY)
            said = _client(what, count, variables)
        finally:
            running.end()
        place = folder / "ledger"
        lines = place.read_text().splitlines() if place.exists() else []
        runs = [(int(number), float(at)) for number, at in (line.split() for line in lines)]
        return Round(said, [run for run in runs if run[0] >= 0])


def _start(contestant: Contestant) -> list[str]:
    if contestant.supervised:
        return [sys.executable, "-m", "taskiq_supervise", APPLICATION, "--workers", str(WORKERS)]
    # taskiq's documentation: this broker is for one worker process only.
    return [sys.executable, "-m", "taskiq", "worker", APPLICATION, "--workers", "1"]


def _client(what: str, count: int, variables: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.zmq.client", what, str(count)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ContestantFailed(f"the client did not end within {3 * PATIENCE:.0f} s") from None
    if done.returncode:
        raise ContestantFailed(f"the client ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
