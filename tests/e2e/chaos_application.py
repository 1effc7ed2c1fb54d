"""The application of the chaos tests; copied as `app.py` into the folder of each test.

A task notes in `ledger` that it has begun and that it is done. While the file `no-forks` lies in
the folder, the zygote's forks fail as they do when there are too many processes: the limit on
processes, RLIMIT_NPROC, does not bind root.
"""

import asyncio
import errno
import logging
import os
import subprocess
import time

from taskiq_supervise import SharedMemoryBroker
from taskiq_supervise.ipc import _core

broker = SharedMemoryBroker("chaos")

_fork_away = _core.fork_away
_child: "subprocess.Popen[bytes] | None" = None


def fork_away() -> tuple[int, int]:
    if os.path.exists("no-forks"):  # noqa: PTH110
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork_away()


_core.fork_away = fork_away

# Thousands of tasks, some of which fail on purpose: without a line for each.
logging.getLogger("taskiq.receiver.receiver").setLevel(logging.CRITICAL)
logging.getLogger("taskiq_supervise.worker").setLevel(logging.WARNING)


def note(word: str, number: int) -> None:
    descriptor = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{word} {number} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


@broker.task
async def quick(number: int) -> int:
    note("begun", number)
    note("done", number)
    return number


@broker.task
async def pause(number: int, seconds: float) -> int:
    note("begun", number)
    await asyncio.sleep(seconds)
    note("done", number)
    return number


@broker.task
def block(number: int, seconds: float) -> int:
    note("begun", number)
    time.sleep(seconds)
    note("done", number)
    return number


@broker.task
async def fail(number: int) -> None:
    note("begun", number)
    note("done", number)
    raise ValueError(number)


@broker.task
async def keep_child(number: int) -> int:
    """Its worker has a child process from then on."""
    global _child
    note("begun", number)
    if _child is None:
        _child = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220 - as applications do
    note("done", number)
    return number
