"""Messages that expire: never started after their time, and those who wait are told at once."""

import asyncio
import time

import pytest
from tests.ipc.conftest import run_one, settled
from tests.ipc.events import (
    HOUR,
    WORKER,
    NewPeer,
    Open,
    Start,
    WallClock,
    claimed_when_there,
    eventually,
    joined,
    later,
    pending,
    soon,
)
from tests.ipc.peer import ROOM

from taskiq_supervise.ipc import (
    AsyncTaskQueue,
    LeaseExpired,
    LeaseLost,
    OutcomeKind,
    TaskQueue,
    Ticket,
    lease,
    line,
    waits,
)

LARGE = 5000
"""Bytes: in a file of its own."""


@pytest.fixture(autouse=True)
def nobody_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits learns it by a wake-up, or not at all."""
    monkeypatch.setattr(waits, "SWEEP", HOUR)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """Of those who hold leases."""
    clock = WallClock()
    monkeypatch.setattr(lease, "time", clock)
    return clock


def is_expired(queue: TaskQueue, ticket: Ticket) -> bool:
    outcome = queue.outcome(ticket)
    return outcome is not None and outcome.kind is OutcomeKind.EXPIRED


async def expires(waiting: AsyncTaskQueue, ticket: Ticket, attempts: int = 0) -> None:
    outcome = await soon(waiting.wait(ticket))
    assert (outcome.kind, outcome.data, outcome.attempts) == (OutcomeKind.EXPIRED, b"", attempts)


@pytest.mark.parametrize("size", [0, 200, LARGE])
async def test_what_nobody_takes_expires(start_queue: Start, size: int) -> None:
    client = await start_queue()
    ticket = await client.put("id", bytes(size), expires=(at := time.time() + 0.05))
    await expires(client, ticket)
    assert time.time() >= at
    assert client.queue.claim() is None
    assert client.queue.files.names() == []
    assert client.queue.stats().done == 1


async def test_one_in_another_process_is_told(start_queue: Start, new_peer: NewPeer) -> None:
    client, custodian = new_peer(), new_peer()
    custodian.join_async()
    client.join_async()
    client.ask("import taskiq_supervise.ipc.waits as waits; waits.SWEEP = 3600.0")
    kind = client.ask(
        "ticket = await waiting.put('id', b'', expires=time.time() + 0.05)\n"
        "(await waiting.wait(ticket)).kind"
    )
    assert kind == OutcomeKind.EXPIRED


async def test_what_expires_before_it_is_due_is_never_ready(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    claim = await pending(worker.claim())
    now = time.time()
    ticket = await client.put("id", b"", due=now + HOUR, expires=now + 0.03)
    await expires(client, ticket)
    assert not claim.done()
    assert client.queue.stats().delayed == 0


async def test_what_is_due_first_can_still_be_taken(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    now = time.time()
    taken = await client.put("taken", b"", due=now + 0.02, expires=now + HOUR)
    missed = await client.put("missed", b"", due=now + 0.04, expires=now + 0.08)
    held = await soon(worker.claim())
    assert held.task_id == "taken"
    held.start()
    await expires(client, missed)
    held.complete(b"in time")
    assert (await soon(client.wait(taken))).data == b"in time"


@pytest.mark.parametrize("size", [0, LARGE])
def test_what_is_over_is_not_handed_out(queue: TaskQueue, size: int) -> None:
    over = queue.put("over", bytes(size), expires=time.time() - 1)
    queue.put("good", b"", expires=time.time() + HOUR)
    assert run_one(queue) == "good"
    assert is_expired(queue, over)
    assert queue.files.names() == []
    assert queue.unfinished == 0


def test_one_who_sleeps_over_it_is_not_handed_it_either(queue: TaskQueue) -> None:
    over = queue.put("over", b"", expires=time.time() - 1)
    assert queue.claim_or_sleep() is None
    assert is_expired(queue, over)


@pytest.mark.parametrize("size", [0, LARGE])
def test_what_was_claimed_in_time_is_not_started_too_late(
    queue: TaskQueue, clock: WallClock, size: int
) -> None:
    ticket = queue.put("id", bytes(size), expires=time.time() + HOUR)
    held = queue.claim()
    assert held is not None
    clock.ahead = 2 * HOUR
    with pytest.raises(LeaseExpired, match="time of task 'id' is over"):
        held.start()
    assert issubclass(LeaseExpired, LeaseLost)
    assert not held.held
    assert is_expired(queue, ticket)
    assert queue.files.names() == []
    with pytest.raises(LeaseLost):
        held.release()


async def test_one_who_waits_is_told_of_a_start_that_came_too_late(
    start_queue: Start, clock: WallClock
) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    ticket = await client.put("id", b"", expires=time.time() + HOUR)
    held = await soon(worker.claim())
    wait = await pending(client.wait(ticket))
    clock.ahead = 2 * HOUR
    with pytest.raises(LeaseExpired):
        held.start()
    assert (await soon(wait)).kind is OutcomeKind.EXPIRED


def test_what_was_started_in_time_may_take_as_long_as_it_likes(
    queue: TaskQueue, clock: WallClock
) -> None:
    ticket = queue.put("id", b"", expires=time.time() + HOUR)
    held = queue.claim()
    assert held is not None
    held.start()
    clock.ahead = 2 * HOUR
    queue.core.run_due(queue.participant, clock.time_ns())
    held.complete(b"result")
    outcome = queue.outcome(ticket)
    assert outcome is not None
    assert outcome.data == b"result"


async def test_one_that_lost_its_worker_expires_with_nobody_there(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client, worker = await start_queue(), new_peer()
    worker.join("role=Role.WORKER")
    ticket = await client.put("id", bytes(LARGE), expires=time.time() + 0.7)
    wait = await pending(client.wait(ticket))
    assert worker.ask("lease = queue.claim(); lease.start()") == 1
    worker.kill()
    outcome = await soon(wait)
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.EXPIRED, 1)
    assert client.queue.files.names() == []


async def test_one_that_was_given_back_expires_with_nobody_there(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    ticket = await client.put("id", b"", expires=time.time() + 0.3)
    held = await soon(worker.claim())
    held.start()
    held.release()
    await expires(client, ticket)


async def test_one_that_is_given_back_after_its_time_expires(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    ticket = await client.put("id", b"", expires=(at := time.time() + 0.2))
    held = await soon(worker.claim())
    held.start()
    await later(lambda: time.time() >= at)
    held.release()
    await expires(client, ticket)
    assert worker.queue.claim() is None


async def test_all_who_wait_are_told_when_many_expire_at_once(start_queue: Start) -> None:
    clients = [await start_queue() for _ in range(3)]
    at = time.time() + 0.05
    tickets = [await clients[0].put(str(n), b"", expires=at) for n in range(ROOM)]
    waits_ = [expires(clients[n % 3], ticket) for n, ticket in enumerate(tickets)]
    await soon(asyncio.gather(*waits_))


async def test_what_has_expired_makes_room(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LOOK_AGAIN", HOUR)
    client = await start_queue()
    for number in range(ROOM):
        await client.put(str(number), b"", expires=time.time() + 0.05)
    put = await pending(client.put("one more", b""))
    assert (await soon(put)).task_id == "one more"


def test_a_custodian_that_stands_still_does_not_keep_others_waiting(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, peers = open_queue(), joined(new_peer, 2)
    peers[0].stop()
    ticket = client.put("id", b"", expires=time.time() + 0.05)
    eventually(lambda: is_expired(client, ticket), "the deputy did not do it")
    peers[0].go_on()


def test_time_goes_on_while_everybody_is_away(open_queue: Open, new_peer: NewPeer) -> None:
    client = open_queue()
    ticket = client.put("id", b"", expires=time.time() + 0.02)
    alive = client.put("alive", b"", expires=time.time() + HOUR)
    client.close()
    late = open_queue()
    assert late.outcome(ticket) is None, "nobody has looked"
    new_peer().join_async()
    eventually(lambda: is_expired(late, ticket))
    assert late.outcome(alive) is None


async def test_a_batch_leaves_out_what_is_over(start_queue: Start) -> None:
    client = (await start_queue()).queue
    over = [client.put(f"over {n}", b"", expires=time.time() - 1) for n in range(3)]
    client.put_many([(str(n), b"") for n in range(3)])
    client.put("in time", b"", expires=time.time() + HOUR)
    leases = client.claim_many(10)
    assert [one.task_id for one in leases] == ["0", "1", "2", "in time"]
    assert [one.attempt for one in leases] == [1, 1, 1, 1]
    assert all(is_expired(client, ticket) for ticket in over)
    assert client.finish_many(leases) == 0
    await settled()
    assert client.stats().done == 3


def test_a_worker_that_sleeps_does_not_wake_for_what_has_expired(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, custodian = open_queue(**WORKER), new_peer()
    custodian.join_async()
    now = time.time()
    worker.put("expires", b"", due=now + HOUR, expires=now + 0.02)
    worker.put("due", b"", due=now + 0.05)
    assert claimed_when_there(worker).task_id == "due"
