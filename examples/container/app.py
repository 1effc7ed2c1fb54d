"""What the container runs."""

from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("container")


@broker.task
async def add(a: int, b: int) -> int:
    return a + b
