"""The application of the two contestants that run taskiq: the same broker, the same tasks."""

import asyncio
import os
import time

from benchmarks import ledger
from benchmarks.supervision import weight  # noqa: F401 - weight is there to be imported
from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("supervision")


@broker.task
def who(seconds: float) -> int:
    """Keeps its worker busy; returns its pid."""
    time.sleep(seconds)
    return os.getpid()


@broker.task
async def note(number: int, seconds: float) -> None:
    await asyncio.sleep(seconds)
    ledger.note(number)
