"""Tasks that were given up are told to a result backend that never sees the queue, once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import AsyncBroker, AsyncResultBackend, InMemoryBroker, TaskiqResult
from tests.broker.conftest import SMALL

from taskiq_supervise.broker import DeadLetterError, WorkerLostError
from taskiq_supervise.broker.outcomes import error_result
from taskiq_supervise.ipc import AsyncTaskQueue, DeadReason, Role, TaskQueue
from taskiq_supervise.worker.listener.intake import SegmentIntake
from taskiq_supervise.worker.listener.settling import UNNAMED, Settling


class Shelf(AsyncResultBackend[Any]):
    def __init__(self) -> None:
        self.results: dict[str, TaskiqResult[Any]] = {}
        self.saved: list[str] = []
        self.failures = 0
        self.failed = asyncio.Event()

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        if self.failures:
            self.failures -= 1
            self.failed.set()
            raise ConnectionError("the server is away")
        self.saved.append(task_id)
        self.results[task_id] = result

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.results

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        return self.results[task_id]


@pytest.fixture
async def intake() -> AsyncIterator[SegmentIntake]:
    queue = AsyncTaskQueue(TaskQueue.open("settling", geometry=SMALL))
    await queue.start()
    intake = SegmentIntake(queue)
    yield intake
    await intake.close()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def broker(shelf: Shelf) -> AsyncBroker:
    return InMemoryBroker().with_result_backend(shelf)


def dead_letter(task_id: str) -> None:
    with TaskQueue.open("settling", role=Role.WORKER) as worker:
        worker.put(task_id, b"payload")
        lease = worker.claim()
        assert lease is not None
        lease.start()
        lease.dead_letter(DeadReason.UNKNOWN_TASK, "task")


def lost(task_id: str) -> None:
    """Acknowledged, and its worker left before there was a result."""
    with TaskQueue.open("settling", role=Role.WORKER) as worker:
        worker.put(task_id, b"payload")
        lease = worker.claim()
        assert lease is not None
        lease.start()
        lease.ack()


async def settled(settling: Settling) -> None:
    settling.look()
    await settling.close()


async def test_a_dead_letter_is_told_once(
    broker: AsyncBroker, shelf: Shelf, intake: SegmentIntake
) -> None:
    dead_letter("a")
    await settled(Settling(broker, intake))
    assert isinstance(shelf.results["a"].error, DeadLetterError)
    shelf.results.clear()  # read, and forgotten
    again = SegmentIntake(intake.queue)  # the next listener
    await settled(Settling(broker, again))
    assert shelf.saved == ["a"]
    dead_letter("b")
    await settled(Settling(broker, again))
    assert shelf.saved == ["a", "b"]


async def test_what_was_lost_after_its_acknowledgement_is_told_and_forgotten(
    broker: AsyncBroker, shelf: Shelf, intake: SegmentIntake
) -> None:
    lost("a")
    await settled(Settling(broker, intake))
    assert isinstance(shelf.results["a"].error, WorkerLostError)
    assert intake.queue.queue.stats().done == 0


async def test_a_result_that_is_there_stays(
    broker: AsyncBroker, shelf: Shelf, intake: SegmentIntake
) -> None:
    shelf.results["a"] = error_result(ValueError("the task's own"))
    dead_letter("a")
    dead_letter(f"{UNNAMED}1")
    await settled(Settling(broker, intake))
    assert shelf.saved == []


async def test_a_backend_that_is_away_is_asked_again(
    broker: AsyncBroker, shelf: Shelf, intake: SegmentIntake
) -> None:
    shelf.failures = 1
    dead_letter("a")
    settling = Settling(broker, intake)
    await shelf.failed.wait()
    await settled(settling)
    assert shelf.saved == ["a"]
