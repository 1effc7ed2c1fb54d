"""The application of the services in a box; copied as `app.py` into a folder of each.

A task notes what it does in `ledger`, in the service's state directory. What has to be caught at
work rings `bell` when it has begun and waits at `gate`: FIFOs in this folder that the test holds
open, one byte in the gate lets one by.
"""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

from taskiq_supervise import SharedMemoryBroker

FOLDER = Path(__file__).parent
ACCESS = FOLDER / "access"

if ACCESS.exists():
    broker = SharedMemoryBroker("shop", mode=0o660, group=ACCESS.read_text().strip())
else:
    broker = SharedMemoryBroker("shop")


def append(path: Path, *words: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


def note(*words: object) -> None:
    append(Path(os.environ["STATE_DIRECTORY"]) / "ledger", *words)


def wait_at_gate(name: str) -> None:
    append(FOLDER / "bell", name, os.getpid())
    gate = os.open(FOLDER / "gate", os.O_RDONLY)
    try:
        os.read(gate, 1)
    finally:
        os.close(gate)


@broker.task
async def add(number: int) -> int:
    """Takes a moment, so that what is killed has some of it to do."""
    note("ran", number)
    await asyncio.sleep(0.01)
    return number


@broker.task
async def echo(number: int) -> int:
    return number


@broker.task
def hold(name: str) -> str:
    note("hold", name)
    wait_at_gate(name)
    note("held", name)
    return name


@broker.task
async def log(level: int, message: str) -> None:
    logging.getLogger("shop").log(level, message)


@broker.task
async def say(message: str) -> None:
    """As code does that knows nothing of logging."""
    print(message)
    print(message, file=sys.stderr)


@broker.task
def speak_for_the_service() -> dict[str, object]:
    """If a child tried: with what it has been given, and with what it can know."""
    inherited = sorted(
        name for name in os.environ if name in {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    )
    done = subprocess.run(
        ["systemd-notify", "--status=I am the service", "--no-block"],
        env={**os.environ, "NOTIFY_SOCKET": "/run/systemd/notify"},
        check=False,
    )
    return {"inherited": inherited, "sent": done.returncode == 0}
