"""Acknowledgement types as in taskiq, and each of them ends with the result."""

import asyncio
from typing import Any

import pytest
from taskiq import (
    Context,
    TaskiqDepends,
)
from taskiq.acks import AcknowledgeType
from tests.broker.conftest import Working, queue_of, stats, until

from taskiq_supervise.broker import SharedMemoryBroker

ENDING = [
    AcknowledgeType.WHEN_RECEIVED,
    AcknowledgeType.WHEN_EXECUTED,
    AcknowledgeType.WHEN_SAVED,
]


@pytest.mark.parametrize("ack_type", ENDING)
async def test_each_acknowledgement_type_ends_with_the_result(
    broker: SharedMemoryBroker, working: Working, ack_type: AcknowledgeType
) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(broker, ack_type=ack_type):
        assert (await (await add.kiq(1, 2)).wait_result(timeout=5)).return_value == 3
        assert (await stats(broker)).running == 0


@pytest.mark.parametrize(
    ("ack_type", "lost"),
    [
        ("when_received", True),
        ("when_executed", False),
        ("when_saved", False),
        ("manual", False),
    ],
)
async def test_only_what_is_acknowledged_is_lost_with_its_worker(
    broker: SharedMemoryBroker, working: Working, ack_type: str, lost: bool
) -> None:
    """Seen from the queue, while the task runs."""
    seen: list[Any] = []

    @broker.task(ack_type=ack_type)
    async def look() -> None:
        queue = await queue_of(broker)
        seen.append(queue.core.counts()[5:7])  # running, acked

    async with working(broker):
        task = await look.kiq()
        if ack_type == "manual":
            await until(lambda: bool(seen))
        else:
            await task.wait_result(timeout=5)
    assert seen == [(0, 1) if lost else (1, 0)]


async def test_a_task_that_acknowledges_by_itself_has_its_result(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task(ack_type="manual")
    async def own(context: Context = TaskiqDepends()) -> str:
        await context.ack()
        return "done"

    async with working(broker):
        assert (await (await own.kiq()).wait_result(timeout=5)).return_value == "done"


async def test_a_task_that_never_acknowledges_has_no_result_and_goes_back_at_the_end(
    broker: SharedMemoryBroker, working: Working
) -> None:
    ran = asyncio.Event()

    @broker.task(ack_type="manual")
    async def silent() -> None:
        ran.set()

    async with working(broker):
        task = await silent.kiq()
        await ran.wait()
    assert not await task.is_ready()
    assert (await stats(broker)).running == 1
    await broker.shutdown()
    await broker.startup()
    assert (await stats(broker)).ready == 1


async def test_an_acknowledgement_that_comes_late_brings_the_result(
    broker: SharedMemoryBroker, working: Working
) -> None:
    kept: list[Context] = []

    @broker.task(ack_type="manual")
    async def later(context: Context = TaskiqDepends()) -> str:
        kept.append(context)
        return "late"

    async with working(broker) as receiver:
        task = await later.kiq()
        await until(lambda: bool(kept) and not receiver._in_flight)
        assert not await task.is_ready()
        await kept[0].ack()
        assert (await task.wait_result(timeout=5)).return_value == "late"
