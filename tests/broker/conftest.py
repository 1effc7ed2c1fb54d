"""A broker on a small queue of its own, and a receiver for it on the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.ipc import AsyncTaskQueue, Geometry, QueueStats, TaskQueue
from taskiq_supervise.worker.receiver import SupervisedReceiver

SMALL = Geometry(slots=256, participants=64, blocks=((1024, 256), (16384, 256)))

Working = Callable[..., AbstractAsyncContextManager[SupervisedReceiver]]


@pytest.fixture
async def broker() -> AsyncIterator[SharedMemoryBroker]:
    """Not started: tests add tasks and middlewares to it first."""
    broker = SharedMemoryBroker("test", geometry=SMALL)
    yield broker
    await broker.shutdown()


@pytest.fixture
def working() -> Working:
    """Starts a receiver for the broker until the end of the block; the broker stays started."""

    @asynccontextmanager
    async def work(broker: SharedMemoryBroker, **options: Any) -> AsyncIterator[SupervisedReceiver]:
        if await broker.attached() is None:
            await broker.startup()
        finish = asyncio.Event()
        with ThreadPoolExecutor(4) as pool:
            receiver = SupervisedReceiver(
                broker, executor=pool, **{"run_startup": False, "max_async_tasks": 10, **options}
            )
            listening = asyncio.create_task(receiver.listen(finish))
            try:
                yield receiver
            finally:
                finish.set()
                await listening

    return work


async def queue_of(broker: SharedMemoryBroker) -> TaskQueue:
    attachment = await broker.attached()
    assert attachment is not None
    assert isinstance(attachment.queue, AsyncTaskQueue)
    return attachment.queue.queue


async def stats(broker: SharedMemoryBroker) -> QueueStats:
    return (await queue_of(broker)).stats()


async def until(condition: Callable[[], bool]) -> None:
    """One turn of the loop after the other."""
    while not condition():  # noqa: ASYNC110 - there is no event for it; the test has a timeout
        await asyncio.sleep(0)
