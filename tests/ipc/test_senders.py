"""Who numbers its messages may send them again: each is in the queue once.

A death at whatever instruction of it is the matter of core/: put-from, resend, recover-sender.
"""

import asyncio
import os
import random
import time
from collections import Counter

import pytest
from tests.ipc.conftest import Peer, run_one
from tests.ipc.events import NewPeer, Open, Start, claimed_when_there, pending, soon
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import (
    AlreadyAccepted,
    DeadReason,
    Geometry,
    OutcomeKind,
    QueueError,
    QueueFull,
    TaskQueue,
)
from taskiq_supervise.ipc._core import MAX_SENDERS

A, B = b"a" * 16, b"b" * 16
IN_FILE = b"x" * 20_000


def sender(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.mark.parametrize("payload", [b"small", b"x" * 250, IN_FILE])
def test_what_is_sent_again_is_refused(queue: TaskQueue, payload: bytes) -> None:
    assert queue.last_from(A) == 0
    queue.put("id", payload, sender=(A, 1))
    assert queue.last_from(A) == 1
    with pytest.raises(AlreadyAccepted, match=r"message 1: .* accepted up to 1"):
        queue.put("id", payload, sender=(A, 1))
    queue.put("id", payload, sender=(A, 2))
    assert queue.stats().ready == 2


def test_a_number_that_was_left_out_does_not_come_later(queue: TaskQueue) -> None:
    queue.put("id", b"", sender=(A, 5))
    with pytest.raises(AlreadyAccepted):
        queue.put("id", b"", sender=(A, 4))
    queue.put("id", b"", sender=(A, 2**64 - 1))
    assert queue.last_from(A) == 2**64 - 1


def test_senders_have_numbers_of_their_own(queue: TaskQueue) -> None:
    queue.put("id", b"", sender=(A, 7))
    queue.put("id", b"", sender=(B, 1))
    queue.put("id", b"")
    queue.put_many([("id", b"")])
    assert (queue.last_from(A), queue.last_from(B)) == (7, 1)


def test_what_did_not_get_in_may_come_again(queue: TaskQueue) -> None:
    queue.put_many([(str(n), b"") for n in range(ROOM)])
    with pytest.raises(QueueFull):
        queue.put("id", b"", sender=(A, 1))
    assert queue.last_from(A) == 0
    run_one(queue)
    queue.put("id", b"", sender=(A, 1))


def test_a_payload_that_cannot_be_written_may_come_again(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError("no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(queue.files, "write", write)
        with pytest.raises(OSError, match="no more"):
            queue.put("id", IN_FILE, sender=(A, 1))
    assert queue.last_from(A) == 0
    queue.put("id", IN_FILE, sender=(A, 1))
    assert queue.stats().ready == 1


@pytest.mark.parametrize(
    ("who", "number", "sentence"),
    [
        (b"", 1, "sender of 0 bytes: use 16"),
        (b"a" * 17, 1, "sender of 17 bytes"),
        (A, 0, "number 0 of a message"),
        (A, -1, "number -1"),
        (A, 1 << 64, "use 1 to"),
    ],
)
def test_who_cannot_be_a_sender_is_told(
    queue: TaskQueue, who: bytes, number: int, sentence: str
) -> None:
    with pytest.raises(QueueError, match=sentence):
        queue.put("id", b"", sender=(who, number))
    assert queue.stats().free == SMALL.slots


def test_it_is_remembered_when_everybody_has_gone(open_queue: Open) -> None:
    with open_queue() as queue:
        queue.put("id", b"", sender=(A, 3))
    with open_queue() as queue, pytest.raises(AlreadyAccepted):
        queue.put("id", b"", sender=(A, 3))


@pytest.mark.parametrize("end", ["result", "forgotten", "discarded", "expired", "dead", "requeued"])
def test_it_is_remembered_whatever_becomes_of_the_message(queue: TaskQueue, end: str) -> None:
    later = time.time() + 1000
    waits = end in ("discarded", "expired")
    over = time.time() if end == "expired" else None
    ticket = queue.put("id", b"", due=later if waits else None, expires=over, sender=(A, 1))
    if end == "discarded":
        queue.discard(ticket)
    elif end == "expired":
        queue.core.run_due(queue.participant, time.time_ns())
        outcome = queue.outcome(ticket)
        assert outcome is not None
        assert outcome.kind is OutcomeKind.EXPIRED
    else:
        lease = queue.claim()
        assert lease is not None
        lease.start()
        if end == "result":
            lease.complete(b"")
        elif end == "forgotten":
            lease.finish(keep=False)
        else:
            lease.dead_letter(DeadReason.UNKNOWN_TASK, "why")
        if end == "requeued":
            queue.requeue(ticket)
    with pytest.raises(AlreadyAccepted):
        queue.put("id", b"", sender=(A, 1))
    assert queue.last_from(A) == 1


@pytest.mark.parametrize(
    ("geometry", "most"),
    [(SMALL, SMALL.slots), (Geometry(slots=4096, inline_size=256), MAX_SENDERS)],
)
def test_those_in_use_are_remembered_and_no_more(
    open_queue: Open, geometry: Geometry, most: int
) -> None:
    queue = open_queue(geometry=geometry)
    segment = queue.directory / "segment"
    size = segment.stat().st_size

    def send(who: int) -> None:
        queue.put("id", b"", sender=(sender(who), who))
        run_one(queue)

    for who in range(1, most + 1):
        send(who)
    send(most + 1)  # in the place of 1
    assert queue.last_from(sender(2)) == 2  # in use again: 3 is the next to go
    send(most + 2)
    remembered = {who: queue.last_from(sender(who)) for who in range(1, most + 3)}
    assert remembered == {who: who if who not in (1, 3) else 0 for who in remembered}
    for who in range(most + 3, 5 * most):
        send(who)
    assert sum(queue.last_from(sender(who)) > 0 for who in range(1, 5 * most)) == most
    assert segment.stat().st_size == size


async def test_it_waits_for_room_as_others_do(start_queue: Start, open_queue: Open) -> None:
    queue = open_queue()
    waiting = await start_queue()
    queue.put_many([(str(n), b"") for n in range(ROOM)])
    put = await pending(waiting.put("id", b"", sender=(A, 1)))
    assert waiting.queue.last_from(A) == 0
    for _ in range(ROOM):
        run_one(queue)
    await soon(put)
    with pytest.raises(AlreadyAccepted):
        await waiting.put("id", b"", sender=(A, 1))
    assert waiting.queue.last_from(A) == 1


async def test_who_gives_up_waiting_for_room_may_send_it_again(start_queue: Start) -> None:
    waiting = await start_queue()
    await waiting.put_many([(str(n), b"") for n in range(ROOM)])
    put = await pending(waiting.put("id", b"", sender=(A, 1)))
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert waiting.queue.last_from(A) == 0


PUTS = """
for number in range({first}, {beyond}):
    payload = b"x" * (20_000 if number % 7 == 0 else number % 300)
    while True:
        try:
            queue.put(str(number), payload, sender=({sender!r}, number))
            break
        except AlreadyAccepted:
            break
        except QueueFull:
            continue
queue.last_from({sender!r})
"""


def test_killed_at_any_moment_and_sent_again_each_is_there_once(
    queue: TaskQueue, new_peer: NewPeer
) -> None:
    kills, most = 12, 6_000
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
    rolls = random.Random(seed)
    came: Counter[int] = Counter()

    def take() -> None:
        lease = claimed_when_there(queue)
        lease.start()
        came[int(lease.task_id)] += 1
        lease.finish(keep=False)

    def send() -> tuple[Peer, int, int]:
        peer = new_peer()
        index = peer.join()
        first = max(1, max(came, default=0) - rolls.randrange(200))  # of these no answer came
        return peer, index, peer.begin(PUTS.format(first=first, beyond=most, sender=A))

    for _ in range(kills):
        peer, index, _ = send()
        for _ in range(rolls.randrange(1, 400)):
            take()
        peer.kill()
        if rolls.randrange(2):  # or who comes next does it, or nobody until the end
            queue.recover(index)
    peer, _, done = send()
    while len(came) < most - 1:
        take()
    assert peer.answer(done) == most - 1, f"CHAOS_SEED={seed}"
    assert queue.claim() is None
    assert set(came.values()) == {1}, f"CHAOS_SEED={seed}"
    for one in list(queue.participants()):
        queue.recover(one.index)
    assert queue.stats().free == SMALL.slots, f"CHAOS_SEED={seed}"
