"""The application that is measured: tasks that do as little as possible."""

import asyncio
import os
import time

from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("benchmark")


@broker.task
async def nothing() -> None:
    return None


@broker.task
def nothing_sync() -> None:
    return None


@broker.task
async def same(content: bytes) -> bytes:
    return content


@broker.task
def block(seconds: float) -> int:
    """Returns the pid of its worker."""
    time.sleep(seconds)
    return os.getpid()


@broker.task
async def hold(pid_file: str) -> None:
    """The first time it says which worker has it and waits to be killed with it."""
    try:
        descriptor = os.open(pid_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.close(descriptor)
    await asyncio.Event().wait()
