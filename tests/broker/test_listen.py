"""With taskiq's own receivers and workers: acknowledgements of all kinds find the right end."""

import asyncio
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq.acks import AcknowledgeType
from taskiq.kicker import AsyncKicker
from taskiq.message import BrokerMessage
from taskiq.receiver import Receiver
from tests.broker.conftest import SMALL, stats

from taskiq_supervise.broker import DeadLetterError, SharedMemoryBroker, wait_result
from taskiq_supervise.ipc import OutcomeKind


@asynccontextmanager
async def taskiqs_receiver(broker: SharedMemoryBroker, **options: Any) -> AsyncIterator[Receiver]:
    await broker.startup()
    finish = asyncio.Event()
    receiver = Receiver(broker, run_startup=False, max_async_tasks=10, **options)
    listening = asyncio.create_task(receiver.listen(finish))
    try:
        yield receiver
    finally:
        finish.set()
        await listening


@pytest.mark.parametrize(
    "ack_type",
    [
        AcknowledgeType.WHEN_RECEIVED,
        AcknowledgeType.WHEN_EXECUTED,
        AcknowledgeType.WHEN_SAVED,
    ],
)
async def test_each_acknowledgement_type_ends_with_the_result(
    broker: SharedMemoryBroker, ack_type: AcknowledgeType
) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with taskiqs_receiver(broker, ack_type=ack_type):
        assert (await (await add.kiq(1, 2)).wait_result(timeout=5)).return_value == 3
    assert (await stats(broker)).done == 1
    attachment = await broker.attached()
    assert attachment is not None
    assert not attachment.held


async def test_a_task_acknowledges_by_itself(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def own(context: Context = TaskiqDepends()) -> bool:
        await context.ack()
        return context.is_acked

    async with taskiqs_receiver(broker, ack_type=AcknowledgeType.MANUAL):
        assert (await (await own.kiq()).wait_result(timeout=5)).return_value is True


@pytest.mark.parametrize("ack_type", [AcknowledgeType.WHEN_RECEIVED, AcknowledgeType.WHEN_SAVED])
async def test_retries_are_followed(broker: SharedMemoryBroker, ack_type: AcknowledgeType) -> None:
    broker.with_middlewares(SimpleRetryMiddleware())
    runs = []

    @broker.task(retry_on_error=True)
    async def flaky() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("not yet")
        return len(runs)

    async with taskiqs_receiver(broker, ack_type=ack_type):
        assert (await (await flaky.kiq()).wait_result(timeout=5)).return_value == 3
    assert (await stats(broker)).running == 0


@pytest.mark.parametrize("ack_type", [AcknowledgeType.WHEN_RECEIVED, AcknowledgeType.WHEN_SAVED])
async def test_what_taskiq_drops_becomes_a_dead_letter(
    broker: SharedMemoryBroker, ack_type: AcknowledgeType
) -> None:
    async with taskiqs_receiver(broker, ack_type=ack_type):
        kicker: AsyncKicker[[], None] = AsyncKicker("no:such", broker, {})
        unknown = await kicker.kiq()
        await broker.kick(BrokerMessage(task_id="bad", task_name="x", message=b"{", labels={}))
        for task_id in (unknown.task_id, "bad"):
            result = await wait_result(broker, task_id, timeout=5)
            assert isinstance(result.error, DeadLetterError)


async def test_somebody_who_reads_the_messages_themselves_is_done_with_each_at_the_next(
    broker: SharedMemoryBroker,
) -> None:
    @broker.task
    async def nothing() -> None:
        return None

    await broker.startup()
    for task_id in "abc":
        await nothing.kicker().with_task_id(task_id).kiq()
    messages = broker.listen()
    for _ in range(2):
        message: Any = await anext(messages)
        await message.ack()
    last: Any = await anext(messages)
    attachment = await broker.attached()
    assert attachment is not None
    outcomes = [await attachment.queue.look(task_id) for task_id in "abc"]
    assert [outcome and outcome.kind for outcome in outcomes] == [
        OutcomeKind.NO_RESULT,
        OutcomeKind.NO_RESULT,
        None,
    ]
    await last.ack()
    await messages.aclose()
    assert not attachment.held


APP = """
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("plain")

@broker.task
async def reverse(content: bytes) -> bytes:
    return content[::-1]
"""


async def test_taskiqs_own_worker_runs_tasks_of_other_processes(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "plain_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(workdir))
    with warnings.catch_warnings():
        from plain_app import broker, reverse  # type: ignore[import-not-found]
    broker.geometry = SMALL
    command = [sys.executable, "-m", "taskiq", "worker", "plain_app:broker", "-w", "1"]
    async with broker_of(broker):
        worker = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            content = os.urandom(1 << 20)
            task = await reverse.kiq(content)
            assert (await task.wait_result(timeout=30)).return_value == content[::-1]
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)
    del sys.modules["plain_app"]


@asynccontextmanager
async def broker_of(broker: SharedMemoryBroker) -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()
