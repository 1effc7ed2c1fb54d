"""The application of the chaos tests; copied as `app.py` into the folder of each test.

A task notes in `ledger` that it has begun and that it is done. While the file `no-forks` lies in
the folder, the zygote's forks fail as they do when there are too many processes: the limit on
processes, RLIMIT_NPROC, does not bind root.

`CHAOS_BROKER` and `CHAOS_ADDRESS` say on which broker: "own" is our ZeroMQBroker, "stock" taskiq's,
whose results are files. Their listener notes in `ledger` what it puts into the queue.
"""

import asyncio
import errno
import logging
import os
import subprocess
import time
from typing import Any

import taskiq
from taskiq import AsyncBroker

import taskiq_supervise
from taskiq_supervise.ipc import _core

ADDRESS = os.environ.get("CHAOS_ADDRESS", "")


def chosen() -> AsyncBroker:
    match os.environ.get("CHAOS_BROKER"):
        case "own":
            return taskiq_supervise.ZeroMQBroker(ADDRESS, ADDRESS)
        case "stock":
            from file_results import FileResults  # type: ignore[import-not-found]

            stock = taskiq.ZeroMQBroker(ADDRESS, ADDRESS)
            return stock.with_result_backend(FileResults())
        case _:
            return taskiq_supervise.SharedMemoryBroker("chaos")


broker = chosen()

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


def append(path: str, *words: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
    finally:
        os.close(descriptor)


def note(word: str, what: int | str) -> None:
    append("ledger", word, what, os.getpid())


def note_puts(intake: Any) -> None:
    """Has a listener say what it puts: before, and once it is in the queue."""
    accept = intake.accept

    async def noted(self: Any, message: Any, sender: Any = None) -> Any:
        note("putting", message.task_id)
        ticket = await accept(self, message, sender)
        if ticket is not None:
            note("put", message.task_id)
        return ticket

    intake.accept = noted


if ADDRESS and "TASKIQ_SUPERVISE_CHAOS_ID" in os.environ:  # the supervisor's processes alone
    from taskiq_supervise.worker.listener.intake import SegmentIntake
    from taskiq_supervise.worker.listener.store_intake import StoreIntake

    note_puts(SegmentIntake)
    note_puts(StoreIntake)


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
