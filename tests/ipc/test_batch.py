"""Many messages at a time: the same promises as for one."""

import asyncio
import struct
import time

import pytest
from tests.ipc.events import WORKER, NewPeer, Open, Start, pending, soon
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import (
    Lease,
    LeaseLost,
    OutcomeKind,
    PayloadTooLarge,
    QueueError,
    TaskQueue,
    UnknownTask,
)

BLOCK = SMALL.blocks[-1][0]


def numbered(count: int, start: int = 0, size: int = 4) -> "list[tuple[str, bytes]]":
    return [(str(n), struct.pack("<I", n).ljust(size, b"x")) for n in range(start, start + count)]


@pytest.mark.parametrize("size", [4, 200, BLOCK])
def test_what_is_put_at_once_comes_out_in_its_order(queue: TaskQueue, size: int) -> None:
    messages = numbered(50, size=size)
    tickets = queue.put_many(messages)
    assert [ticket.task_id for ticket in tickets] == [task_id for task_id, _ in messages]
    assert len(set(tickets)) == 50
    leases = queue.claim_many(64)
    assert [(lease.task_id, lease.payload, lease.attempt) for lease in leases] == [
        (task_id, payload, 1) for task_id, payload in messages
    ]
    assert queue.unfinished == 50
    assert queue.stats().running == 50
    assert queue.finish_many(leases) == 0
    assert queue.unfinished == 0
    assert queue.stats().free == SMALL.slots


def test_nothing_at_once_is_nothing(queue: TaskQueue) -> None:
    assert queue.put_many([]) == []
    assert queue.claim_many(10) == []
    assert queue.finish_many([]) == 0
    queue.put("id", b"")
    assert queue.claim_many(0) == []
    assert queue.stats().ready == 1


def test_no_more_are_taken_than_were_asked_for(queue: TaskQueue) -> None:
    queue.put_many(numbered(10))
    assert [lease.task_id for lease in queue.claim_many(3)] == ["0", "1", "2"]
    assert queue.stats().ready == 7


def test_full_midway_says_how_far_it_came(queue: TaskQueue) -> None:
    assert len(queue.put_many(numbered(ROOM - 5))) == ROOM - 5
    assert [ticket.task_id for ticket in queue.put_many(numbered(10, 100))] == [
        "100", "101", "102", "103", "104",
    ]  # fmt: skip
    assert queue.put_many(numbered(10, 200)) == []
    assert queue.stats().ready == ROOM
    with pytest.raises(UnknownTask):
        queue.find("105")


def test_workers_have_the_kept_slots_here_too(queue: TaskQueue, open_queue: Open) -> None:
    assert len(queue.put_many(numbered(SMALL.slots))) == ROOM
    assert len(open_queue(**WORKER).put_many(numbered(10, 100))) == SMALL.slots - ROOM


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (("x" * 201, b""), QueueError),
        (("", b""), QueueError),
        (("id", bytes(BLOCK + 1)), PayloadTooLarge),
        (("id", 5), TypeError),
        (("id",), TypeError),
    ],
    ids=["long id", "no id", "too large", "no bytes", "no pair"],
)
def test_what_can_never_be_put_is_an_error_and_leaves_nothing(
    queue: TaskQueue, bad: "tuple[str, bytes]", error: type[Exception]
) -> None:
    with pytest.raises(error):
        queue.put_many([bad, ("good", b"")])
    stats = queue.stats()
    assert (stats.free, stats.ready) == (SMALL.slots, 0)
    assert len(queue.put_many(numbered(SMALL.slots))) == ROOM


def test_a_bad_one_keeps_those_before_it_out_too(queue: TaskQueue) -> None:
    """Nobody may hold a message for lost that is in the queue, nor the other way round."""
    with pytest.raises(PayloadTooLarge):
        queue.put_many([("0", b""), ("1", b""), ("2", bytes(BLOCK + 1)), ("3", b"")])
    assert queue.stats().ready == 0


def test_kept_outcomes_tell_that_it_ended(queue: TaskQueue) -> None:
    tickets = queue.put_many(numbered(3))
    assert queue.finish_many(queue.claim_many(3), keep=True) == 0
    for ticket in tickets:
        outcome = queue.outcome(ticket)
        assert outcome is not None
        assert outcome.kind is OutcomeKind.NO_RESULT


def test_of_many_ends_only_those_that_are_ours_count(queue: TaskQueue, open_queue: Open) -> None:
    late, other = queue, open_queue()
    late.put_many(numbered(4))
    leases = late.claim_many(4)
    for lease in leases[1:3]:  # behind the leases' backs
        late.core.release(late.participant, lease.slot, lease.word)
    theirs = other.claim_many(4)
    assert {lease.task_id for lease in theirs} == {"1", "2"}
    assert late.finish_many(leases) == 2
    assert not any(lease.held for lease in leases)
    assert other.finish_many(theirs) == 0
    assert other.stats().free == SMALL.slots


def test_ended_leases_among_them_are_passed_over(queue: TaskQueue) -> None:
    queue.put_many(numbered(3))
    leases = queue.claim_many(3)
    leases[1].complete(b"result")
    assert queue.finish_many(leases) == 0
    assert queue.finish_many(leases) == 0
    outcome = queue.outcome("1")
    assert outcome is not None
    assert outcome.data == b"result"
    with pytest.raises(LeaseLost):
        leases[0].complete(b"late")


def test_a_damaged_one_among_them_becomes_a_dead_letter(queue: TaskQueue) -> None:
    queue.put("0", b"")
    ticket = queue.put("large", bytes(5000))
    queue.put("1", b"")
    path = queue.directory / "files" / f"q-{ticket.slot}-{ticket.generation}"
    path.write_bytes(b"short")
    assert [lease.task_id for lease in queue.claim_many(3)] == ["0", "1"]
    outcome = queue.outcome(ticket)
    assert outcome is not None
    assert outcome.kind is OutcomeKind.DEAD
    assert "cannot be read" in outcome.detail
    assert queue.unfinished == 2


async def test_a_batch_wakes_as_many_workers_as_it_has_messages(start_queue: Start) -> None:
    client = await start_queue()
    workers = [await start_queue(**WORKER) for _ in range(3)]
    claims = [await pending(worker.claim()) for worker in workers]
    client.queue.put_many(numbered(3))
    assert {(await soon(claim)).task_id for claim in claims} == {"0", "1", "2"}


async def test_who_waits_for_many_is_told_of_all(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    tickets = await client.put_many(numbered(20))
    waits = [await pending(client.wait(ticket)) for ticket in tickets]
    for lease in worker.queue.claim_many(20):
        lease.complete(lease.payload)
    outcomes = await soon(asyncio.gather(*waits))
    assert [outcome.data for outcome in outcomes] == [payload for _, payload in numbered(20)]


async def test_more_than_fits_waits_for_room(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    put = await pending(client.put_many(numbered(5 * SMALL.slots)))
    seen: list[str] = []
    async for leases in worker.listen(7):
        assert 0 < len(leases) <= 7
        seen += [lease.task_id for lease in leases]
        assert worker.queue.finish_many(leases) == 0
        if len(seen) == 5 * SMALL.slots:
            break
    assert seen == [str(n) for n in range(5 * SMALL.slots)]
    assert len(await soon(put)) == 5 * SMALL.slots


async def test_one_who_listens_hears_what_comes_later(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    listening = worker.listen(4)
    for number in range(3):
        first = await pending(anext(listening))
        client.queue.put(str(number), b"", expires=time.time() + 3600)
        [lease] = await soon(first)
        assert (lease.task_id, lease.attempt) == (str(number), 1)
        lease.complete(b"")
    waiting = await pending(anext(listening))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await listening.aclose()


async def test_one_who_listens_is_not_given_what_is_over(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    over = [client.queue.put(f"over {n}", b"", expires=time.time() - 1) for n in range(3)]
    client.queue.put("good", b"")
    listening = worker.listen(8)
    leases = await soon(anext(listening))
    assert [lease.task_id for lease in leases] == ["good"]
    for ticket in over:
        assert (await soon(client.wait(ticket))).kind is OutcomeKind.EXPIRED
    await listening.aclose()


def test_a_worker_that_is_killed_with_a_batch_gives_it_all_back(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, worker = open_queue(), new_peer()
    index = worker.join("role=Role.WORKER")
    client.put_many(numbered(20, size=200))
    assert worker.ask("leases = queue.claim_many(10); len(leases)") == 10
    worker.kill()
    burial = client.recover(index)
    assert burial is not None
    assert sorted(burial.redelivered, key=int) == [str(n) for n in range(10)]
    again = client.claim_many(20)
    assert sorted((one.task_id for one in again), key=int) == [str(n) for n in range(20)]
    assert {one.attempt for one in again} == {1, 2}


def test_batches_of_many_processes_are_shared_out(open_queue: Open, new_peer: NewPeer) -> None:
    """Two put, two take, each message once; a batch never mixes what others hold."""
    client, peers = open_queue(), [new_peer() for _ in range(4)]
    for peer in peers:
        peer.join_async("role=Role.WORKER" if peer in peers[2:] else "")
    total = 600
    putting = [
        peer.begin(
            f"messages = [(f'{number}-{{n}}', b'') for n in range({total})]\n"
            f"len([await waiting.put_many(messages[n:n + 50]) for n in range(0, {total}, 50)])"
        )
        for number, peer in enumerate(peers[:2])
    ]
    for peer in peers[2:]:
        peer.begin(
            "done = []\n"
            "async for leases in waiting.listen(16):\n"
            "    assert queue.finish_many(leases) == 0\n"
            "    done += [lease.task_id for lease in leases]"
        )
    for peer, number in zip(peers, putting, strict=False):
        assert peer.answer(number) == total // 50
    done: list[str] = []
    while len(done) < 2 * total:
        done = [task_id for peer in peers[2:] for task_id in peer.ask("done")]
    assert sorted(done) == sorted(f"{p}-{n}" for p in range(2) for n in range(total))
    assert client.stats().free == SMALL.slots


def test_leaving_gives_a_batch_back(queue: TaskQueue, open_queue: Open) -> None:
    leaving = open_queue()
    queue.put_many(numbered(5))
    leases: list[Lease] = leaving.claim_many(5)
    leaving.close()
    assert not any(lease.held for lease in leases)
    assert sorted((lease.task_id, lease.attempt) for lease in queue.claim_many(5)) == [
        (str(n), 1) for n in range(5)
    ]
