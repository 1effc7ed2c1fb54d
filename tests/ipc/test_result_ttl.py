"""How long outcomes are kept: one time per queue, kept in it."""

import asyncio
import time

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.events import NewPeer, Open, Start, eventually, later, pending, soon
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    QueueError,
    Role,
    TaskQueue,
    UnknownTask,
)

LARGE = 5000


def is_known(queue: TaskQueue, task_id: str) -> bool:
    return queue.core.find(task_id.encode()) is not None


async def forgotten(queue: TaskQueue, task_id: str) -> None:
    await later(lambda: not is_known(queue, task_id))
    with pytest.raises(UnknownTask, match="its result has expired"):
        queue.outcome(task_id)


def test_an_hour_unless_somebody_says_otherwise(queue: TaskQueue) -> None:
    assert queue.result_ttl == 3600


@pytest.mark.parametrize("seconds", [0, 0.25, 60, 86_400 * 365])
def test_it_is_the_queues_and_outlives_everybody(open_queue: Open, seconds: float) -> None:
    first, second = open_queue(), open_queue()
    first.result_ttl = seconds
    assert second.result_ttl == seconds
    first.close()
    second.close()
    assert open_queue().result_ttl == seconds
    assert open_queue("another").result_ttl == 3600


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e300])
def test_times_that_are_none_are_refused(queue: TaskQueue, seconds: float) -> None:
    with pytest.raises(QueueError, match="use seconds from 0 to"):
        queue.result_ttl = seconds
    assert queue.result_ttl == 3600


@pytest.mark.parametrize("size", [0, 200, LARGE])
async def test_a_short_one_is_over_soon(start_queue: Start, size: int) -> None:
    client = (await start_queue()).queue
    client.result_ttl = 0.4
    client.put("id", b"")
    run_one(client, bytes(size))
    ended = time.time()
    assert is_known(client, "id")
    await forgotten(client, "id")
    assert time.time() - ended >= 0.4
    assert client.stats().free == SMALL.slots
    assert client.files.names() == []


async def test_it_counts_from_the_end_also_for_what_ended_before_it_was_set(
    start_queue: Start,
) -> None:
    client = (await start_queue()).queue
    client.put("id", b"")
    run_one(client)
    client.put("waits", b"")
    client.result_ttl = 0.05
    await forgotten(client, "id")
    assert is_known(client, "waits"), "messages do not age"


def test_the_custodian_hears_of_it_from_another_process(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, custodian = open_queue(), new_peer()
    custodian.join_async()
    client.put("id", b"")
    run_one(client)
    client.result_ttl = 0.05
    eventually(lambda: not is_known(client, "id"))


def test_it_is_kept_when_the_custodian_stands_still(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(), [new_peer(), new_peer()]
    for peer in peers:
        peer.join_async()
    peers[0].stop()
    client.put("id", b"")
    run_one(client)
    client.result_ttl = 0.05
    eventually(lambda: not is_known(client, "id"), "the deputy did not do it")
    peers[0].go_on()


async def test_dead_letters_are_kept_longer(start_queue: Start) -> None:
    client = (await start_queue()).queue
    client.result_ttl = 0.05
    for task_id in ("dead", "done"):
        client.put(task_id, b"")
    lease = client.claim()
    assert lease is not None
    lease.dead_letter(DeadReason.UNKNOWN_TASK, "")
    run_one(client)
    await forgotten(client, "done")
    assert is_known(client, "dead")


async def test_never_is_never(start_queue: Start) -> None:
    client = (await start_queue()).queue
    client.result_ttl = 0
    client.put("id", b"")
    run_one(client)
    assert client.core.audit(client.participant, 2**63, 2**63) == (0, 0)
    assert is_known(client, "id")


async def test_one_who_waits_for_what_is_forgotten_is_told(start_queue: Start) -> None:
    """It was slow to look; then there is nothing left to wait for."""
    client, worker = await start_queue(), await start_queue(role=Role.WORKER)
    ticket = await client.put("id", b"")
    wait = await pending(client.wait(ticket))
    asyncio.get_running_loop().remove_reader(client.queue.fileno())
    run_one(worker.queue)
    worker.queue.result_ttl = 0.05
    await forgotten(worker.queue, "id")
    with pytest.raises(UnknownTask):
        await soon(wait)
    asyncio.get_running_loop().add_reader(client.queue.fileno(), client._on_bell)
