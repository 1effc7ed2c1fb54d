"""The smallest application: `taskiq-supervise app:broker --workers 4` in this folder runs it."""

from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("demo")


@broker.task
async def add(a: int, b: int) -> int:
    return a + b
