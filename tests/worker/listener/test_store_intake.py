"""What sources ask of the store, and workers of the hub, in one process."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from zmq.utils import garbage

from taskiq_supervise.ipc import (
    DeadReason,
    FilesFull,
    LeaseExpired,
    OutcomeKind,
    QueueFull,
    UnknownTask,
)
from taskiq_supervise.worker.hub_client import HubQueue
from taskiq_supervise.worker.listener.intake import Incoming
from taskiq_supervise.worker.listener.ledger import Limits
from taskiq_supervise.worker.listener.store_intake import StoreIntake

SENDER = b"s" * 16


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """pyzmq has one of its own for buffers that are sent without a copy; it goes on otherwise."""
    yield
    garbage.gc.stop()


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[StoreIntake]:
    opened = await StoreIntake.open(tmp_path, limits=Limits(capacity=3))
    yield opened
    await opened.close()


@pytest.fixture
async def worker(tmp_path: Path, intake: StoreIntake) -> AsyncIterator[HubQueue]:
    queue = HubQueue(tmp_path, takes=True, most=10)
    await queue.start()
    yield queue
    await queue.close()


async def run_next(worker: HubQueue, result: bytes = b"result") -> str:
    lease = await worker.claim()
    lease.start()
    await worker.complete(lease, result)
    return lease.task_id


async def test_large_buffers_come_through_both_ways(intake: StoreIntake, worker: HubQueue) -> None:
    large = os.urandom(3_000_000)
    await intake.accept(Incoming("a", b"payload", (memoryview(large), b"small")))
    lease = await worker.claim()
    assert (lease.payload, [bytes(each) for each in lease.buffers]) == (
        b"payload",
        [large, b"small"],
    )
    lease.start()
    await worker.complete(lease, b"result", [large])
    outcome = await intake.wait("a")
    assert (outcome.data, bytes(outcome.buffers[0])) == (b"result", large)


async def test_a_number_that_was_accepted_is_not_accepted_again(intake: StoreIntake) -> None:
    first, second = await asyncio.gather(
        intake.accept(Incoming("a", b""), (SENDER, 1)),
        intake.accept(Incoming("a", b""), (SENDER, 1)),
    )
    assert first is not None
    assert second is None
    assert intake.last_from(SENDER) == 1


async def test_who_finds_no_room_waits_until_a_task_has_ended(
    intake: StoreIntake, worker: HubQueue
) -> None:
    for task_id in "abc":
        await intake.accept(Incoming(task_id, b""))
    waiting = asyncio.create_task(intake.accept(Incoming("d", b"")))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    await run_next(worker)
    assert await waiting is not None


async def test_a_worker_that_waits_for_room_gives_up_after_its_time(
    intake: StoreIntake, worker: HubQueue
) -> None:
    for task_id in "abc":
        await intake.accept(Incoming(task_id, b""))
    with pytest.raises(QueueFull):
        await worker.put("d", b"", timeout=0.05)
    assert [await run_next(worker) for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(UnknownTask):
        await worker.look("d")


async def test_who_does_not_want_to_wait_for_room_any_more_is_not_accepted(
    intake: StoreIntake, worker: HubQueue
) -> None:
    for task_id in "abc":
        await intake.accept(Incoming(task_id, b""))
    waiting = asyncio.create_task(intake.accept(Incoming("d", b"")))
    await asyncio.wait({waiting}, timeout=0.05)
    waiting.cancel()
    for _ in range(3):
        await run_next(worker)
    with pytest.raises(UnknownTask):
        intake.look("d")


async def test_a_full_disk_is_an_error_for_the_sender_and_tasks_end_all_the_same(
    intake: StoreIntake, worker: HubQueue
) -> None:
    await intake.accept(Incoming("a", b""))
    file = intake._ledger._store._file
    (pages,) = file.execute("PRAGMA page_count").fetchone()
    file.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(FilesFull, match="no room"):
        await intake.accept(Incoming("b", os.urandom(100_000)), (SENDER, 1))
    assert intake.last_from(SENDER) == 0
    assert await run_next(worker) == "a"
    assert (await intake.wait("a")).kind is OutcomeKind.RESULT


async def test_acknowledged_is_told_when_a_task_was_and_not_before(
    intake: StoreIntake, worker: HubQueue
) -> None:
    ticket = await intake.accept(Incoming("a", b""))
    assert ticket is not None
    waiting = asyncio.create_task(intake.acknowledged(ticket))
    lease = await worker.claim()
    lease.start()
    assert not waiting.done()
    await worker.acknowledge(lease)
    await waiting
    await worker.complete(lease, b"result")
    await intake.acknowledged("never sent")


async def test_a_task_that_expires_in_the_hands_of_a_worker_is_not_started(
    intake: StoreIntake, worker: HubQueue
) -> None:
    await intake.accept(Incoming("a", b""))
    lease = await worker.claim()
    lease.expires = 1.0
    with pytest.raises(LeaseExpired):
        lease.start()
    outcome = await intake.wait("a")
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.EXPIRED, 0)


async def test_a_claim_that_is_given_up_takes_nothing(
    intake: StoreIntake, worker: HubQueue, tmp_path: Path
) -> None:
    claim = asyncio.create_task(worker.claim())
    await asyncio.wait({claim}, timeout=0.05)
    claim.cancel()
    await asyncio.wait({claim})
    await intake.accept(Incoming("a", b""))
    other = HubQueue(tmp_path, takes=True, most=1)
    await other.start()
    assert await run_next(other) == "a"
    await other.close()


async def test_endings_are_those_that_nobody_has_told(
    intake: StoreIntake, worker: HubQueue
) -> None:
    await intake.accept(Incoming("a", b"payload"))
    lease = await worker.claim()
    lease.dead_letter(DeadReason.UNKNOWN_TASK, "no_such_task")
    assert (await intake.wait("a")).detail == "no_such_task"
    (ending,) = intake.endings()
    assert (ending.outcome.task_id, ending.payload) == ("a", b"payload")
    intake.settle(ending)
    await intake.accept(Incoming("b", b""))  # a turn later
    assert intake.endings() == []
