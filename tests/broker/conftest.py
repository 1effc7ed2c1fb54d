"""A broker on a small queue of its own, and a receiver for it on the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.ipc import Geometry
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
    """Starts the broker, and a receiver for it until the end of the block."""

    @asynccontextmanager
    async def work(broker: SharedMemoryBroker, **options: Any) -> AsyncIterator[SupervisedReceiver]:
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
