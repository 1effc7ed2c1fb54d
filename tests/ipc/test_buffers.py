"""Out-of-band buffers and payloads of any size: framed in the segment, or in files beside it."""

import array
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.ipc.events import NewPeer, Open
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    Geometry,
    Lease,
    LeaseLost,
    OutcomeKind,
    QueueError,
    Role,
    TaskQueue,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

BLOCK = SMALL.blocks[-1][0]
# What a frame needs beside its parts is within these.
SIZES = [0, 1, BLOCK - 72, BLOCK - 57, BLOCK - 56, BLOCK - 55, BLOCK - 1, BLOCK, BLOCK + 1, 5000]
LARGE = 5000


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((number * 7 + seed) % 251 for number in range(size))


def taken(queue: TaskQueue) -> Lease:
    lease = queue.claim()
    assert lease is not None
    lease.start()
    return lease


def there_and_back(
    queue: TaskQueue, payload: "Buffer", buffers: "Sequence[Buffer]"
) -> "tuple[bytes, list[memoryview]]":
    """As an argument, and the same as a result; both have to be equal."""
    queue.put("id", payload, buffers=buffers)
    lease = taken(queue)
    seen = lease.payload, list(lease.buffers)
    lease.complete(payload, buffers)
    outcome = queue.outcome("id")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.RESULT
    assert (outcome.data, [bytes(one) for one in outcome.buffers]) == (
        seen[0], [bytes(one) for one in seen[1]],
    )  # fmt: skip
    again = queue.outcome("id")
    assert again is not None
    assert [bytes(one) for one in again.buffers] == [bytes(one) for one in seen[1]]
    return seen


@pytest.mark.parametrize("payload", SIZES)
def test_every_size_comes_out_as_it_went_in(queue: TaskQueue, payload: int) -> None:
    for size in SIZES:
        for buffers in ([size], [size, 3], [0, size]):
            parts = [pattern(length, seed) for seed, length in enumerate(buffers, 1)]
            data, seen = there_and_back(queue, pattern(payload), parts)
            assert data == pattern(payload)
            assert [bytes(one) for one in seen] == parts
            queue.drop(queue.find("id"))
    assert queue.files.names() == []
    assert queue.stats().free == SMALL.slots


@pytest.mark.parametrize("count", [1, 2, 7, 29])
@pytest.mark.parametrize("size", [0, 1, 300])
def test_many_buffers_keep_their_order(queue: TaskQueue, count: int, size: int) -> None:
    parts = [pattern(size, number) for number in range(count)]
    assert [bytes(one) for one in there_and_back(queue, b"p", parts)[1]] == parts


def test_more_buffers_than_can_be_listed_are_refused(queue: TaskQueue) -> None:
    with pytest.raises(QueueError, match="1000 buffers are more than one message can have"):
        queue.put("id", b"", buffers=[b""] * 1000)
    assert queue.stats().free == SMALL.slots
    queue.put("id", b"")
    lease = taken(queue)
    with pytest.raises(QueueError, match="1000 buffers"):
        lease.complete(b"", [b""] * 1000)
    assert lease.held
    assert queue.files.names() == []


def test_the_default_queue_takes_a_thousand(open_queue: Open) -> None:
    queue = open_queue(geometry=Geometry(slots=64))
    parts = [pattern(number) for number in range(1000)]
    assert [bytes(one) for one in there_and_back(queue, b"p", parts)[1]] == parts


@pytest.mark.parametrize(
    "made",
    [
        lambda: memoryview(pattern(400))[::2],
        lambda: memoryview(pattern(40))[::-1],
        lambda: array.array("d", [1.5, 2.5]),
        lambda: memoryview(array.array("i", range(200))),
        lambda: memoryview(pattern(240)).cast("B", (4, 60)),
        lambda: bytearray(LARGE),
        lambda: np.arange(12.0).reshape(3, 4).T,
        lambda: np.arange(1200.0).reshape(30, 40)[::2, ::3],
        lambda: np.zeros((0, 3)),
        lambda: np.array(5.0),
    ],
    ids=["strided", "reversed", "array", "ints", "two dimensions", "bytearray", "transposed",
         "cut", "no rows", "scalar"],
)  # fmt: skip
def test_buffers_of_every_shape_are_taken(queue: TaskQueue, made: "Callable[[], Buffer]") -> None:
    data = made()
    _, [seen] = there_and_back(queue, b"p", [data])
    assert bytes(seen) == memoryview(data).tobytes()
    assert (seen.format, seen.ndim) == ("B", 1)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [2, 40])
def test_pickled_arrays_are_themselves_again(queue: TaskQueue, order: Any, rows: int) -> None:
    """Pickle's own buffers say in which order the elements lie."""
    arrays = [np.asarray(np.arange(rows * 3.0).reshape(rows, 3), order=order), np.arange(5)]
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(arrays, protocol=5, buffer_callback=buffers.append)
    data, seen = there_and_back(queue, payload, buffers)
    for back, array_ in zip(pickle.loads(data, buffers=seen), arrays, strict=True):
        np.testing.assert_array_equal(back, array_)


@pytest.mark.parametrize("size", [10, LARGE])
def test_what_is_changed_by_one_is_seen_by_nobody_else(
    queue: TaskQueue, open_queue: Open, size: int
) -> None:
    other = open_queue()
    ticket = queue.put("id", b"", buffers=[pattern(size)])
    lease = taken(queue)
    if not lease.buffers[0].readonly:
        lease.buffers[0][:4] = b"mine"
    lease.release()
    assert bytes(other.peek(ticket)[1][0]) == pattern(size)
    assert bytes(taken(other).buffers[0]) == pattern(size)


def test_buffers_live_for_as_long_as_somebody_holds_them(queue: TaskQueue) -> None:
    """Files are used again, but never under somebody's eyes."""
    held = []
    for number in range(5):
        queue.put("id", pattern(LARGE, number), buffers=[pattern(LARGE, number + 50)])
        lease = taken(queue)
        held.append(lease.buffers[0])
        lease.complete(b"", [pattern(LARGE, number + 100)])
        outcome = queue.outcome("id")
        assert outcome is not None
        held.append(outcome.buffers[0])
        queue.drop(queue.find("id"))
    assert queue.files.names() == []
    for number in range(5):
        assert held[2 * number] == pattern(LARGE, number + 50)
        assert held[2 * number + 1] == pattern(LARGE, number + 100)
    queue.close()
    assert held[0] == pattern(LARGE, 50)


def test_files_are_used_again(queue: TaskQueue) -> None:
    for number in range(50):
        queue.put("id", pattern(LARGE, number))
        taken(queue).finish(keep=False)
    assert queue.files.total_bytes() < 4 * LARGE


@pytest.mark.parametrize("end", ["finish", "keep", "complete", "dead and dropped", "discarded"])
def test_the_file_of_a_payload_goes_with_its_message(queue: TaskQueue, end: str) -> None:
    ticket = queue.put("id", b"", buffers=[pattern(LARGE)])
    assert queue.files.names() == [f"q-{ticket.slot}-{ticket.generation}"]
    lease = taken(queue)
    if end == "complete":
        lease.complete(b"small")
    elif end == "dead and dropped":
        lease.dead_letter(DeadReason.UNPARSABLE, "")
        assert queue.files.names() == [f"q-{ticket.slot}-{ticket.generation}"]
        queue.drop(ticket)
    elif end == "discarded":
        lease.release()
        assert queue.discard(ticket)
    else:
        lease.finish(keep=end == "keep")
    assert queue.files.names() == []


def test_dead_letters_that_are_forgotten_leave_no_files(queue: TaskQueue) -> None:
    for number in range(30):
        queue.put(str(number), pattern(LARGE))
        taken(queue).dead_letter(DeadReason.UNPARSABLE, "")
    queue.sweep_files()
    assert len(queue.files.names()) == queue.stats().dead <= SMALL.slots // 8


def test_one_who_comes_too_late_does_not_take_the_file_away(
    queue: TaskQueue, open_queue: Open
) -> None:
    late, other = queue, open_queue()
    late.put("id", pattern(LARGE))
    lease = taken(late)
    late.core.release(late.participant, lease.slot, lease.word)  # behind the lease's back
    with pytest.raises(LeaseLost):
        lease.complete(pattern(LARGE, 1))
    theirs = taken(other)
    assert theirs.payload == pattern(LARGE)
    theirs.complete(pattern(LARGE, 2))
    outcome = late.outcome("id")
    assert outcome is not None
    assert outcome.data == pattern(LARGE, 2)
    assert len(late.files.names()) == 1


@pytest.mark.parametrize("mebibytes", [20, pytest.param(100, marks=pytest.mark.stress)])
def test_many_mebibytes_there_and_back(open_queue: Open, new_peer: NewPeer, mebibytes: int) -> None:
    client, worker = open_queue(geometry=Geometry(slots=64)), new_peer()
    worker.join("role=Role.WORKER")
    data = np.random.default_rng(1).integers(0, 255, mebibytes << 20, dtype=np.uint8)
    client.put("id", b"payload", buffers=[data.data])
    worker.ask("lease = queue.claim(); lease.start(); lease.complete(b'', list(lease.buffers))")
    outcome = client.outcome("id")
    assert outcome is not None
    np.testing.assert_array_equal(np.frombuffer(outcome.buffers[0], np.uint8), data)


def test_a_worker_without_descriptors_leaves_it_to_another(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, worker = open_queue(), new_peer()
    worker.join("role=Role.WORKER")
    client.put("id", b"", buffers=[pattern(LARGE)])
    said = worker.ask(
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "used = max(map(int, os.listdir('/proc/self/fd')))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))\n"
        "try: queue.claim()\n"
        "except OSError as error: said = error.strerror\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "said"
    )
    assert "Too many open files" in said
    lease = taken(client)
    assert bytes(lease.buffers[0]) == pattern(LARGE)


def test_a_file_that_is_gone_or_too_short_makes_a_dead_letter(
    queue: TaskQueue, open_queue: Open
) -> None:
    for number, damage in enumerate(("gone", "short", "folder")):
        ticket = queue.put(str(number), b"", buffers=[pattern(LARGE)])
        path = queue.directory / "files" / f"q-{ticket.slot}-{ticket.generation}"
        path.unlink() if damage != "short" else path.write_bytes(b"short")
        if damage == "folder":
            path.mkdir()
        assert open_queue(role=Role.WORKER).claim() is None
        outcome = queue.outcome(ticket)
        assert outcome is not None
        assert outcome.dead_reason is DeadReason.DAMAGED
        if damage == "folder":
            path.rmdir()
