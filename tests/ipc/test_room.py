"""A full queue: what makes room, and what keeps its own."""

from contextlib import suppress

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.events import Open
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    OutcomeKind,
    QueueFull,
    Role,
    TaskQueue,
    UnknownTask,
)

BLOCK = 256  # bytes of the largest class

FOR_REQUESTS = 64 - 64 // 16  # blocks of a class that requests do not leave to results


def test_full_means_full_and_room_is_room(queue: TaskQueue) -> None:
    for number in range(ROOM):
        queue.put(str(number), b"")
    with pytest.raises(QueueFull):
        queue.put("one more", b"")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=False)
    queue.put("one more", b"")
    with pytest.raises(QueueFull):
        queue.put("two more", b"")


def test_one_slot_in_64_is_kept_for_what_workers_send_again(
    queue: TaskQueue, open_queue: Open
) -> None:
    worker = open_queue(role=Role.WORKER)
    for number in range(ROOM):
        queue.put(str(number), b"")
    with pytest.raises(QueueFull):
        queue.put("of a client", b"")
    for number in range(SMALL.slots - ROOM):
        worker.put(f"again {number}", b"")
    assert queue.stats().free == 0
    with pytest.raises(QueueFull):
        worker.put("one more", b"")


@pytest.mark.parametrize("large", [60, BLOCK])
def test_a_queue_full_of_payloads_can_still_store_results(queue: TaskQueue, large: int) -> None:
    with suppress(QueueFull):
        for number in range(SMALL.slots):
            queue.put("x" * 196 + f"{number:4}", bytes(large))
    expected = FOR_REQUESTS if large == BLOCK else ROOM  # the small ones find the other class too
    assert queue.stats().ready == expected
    held = 0
    while (lease := queue.claim()) is not None:
        lease.start()
        lease.complete(bytes(200))
        held += 1
    assert held == expected


def test_results_make_room_for_results(queue: TaskQueue) -> None:
    for number in range(5 * SMALL.slots):
        queue.put(str(number), b"")
        run_one(queue, bytes(250))
    outcome = queue.outcome(str(5 * SMALL.slots - 1))
    assert outcome is not None
    assert outcome.data == bytes(250)


def test_a_payload_that_finds_no_room_leaves_nothing_behind(queue: TaskQueue) -> None:
    for number in range(FOR_REQUESTS):
        queue.put(f"first {number}", bytes(BLOCK))
    for _ in range(100):
        with pytest.raises(QueueFull):
            queue.put("second", bytes(BLOCK))
    assert queue.stats().free == SMALL.slots - FOR_REQUESTS
    for _ in range(FOR_REQUESTS):
        lease = queue.claim()
        assert lease is not None
        lease.start()
        lease.finish(keep=False)
    assert queue.stats().free == SMALL.slots
    for number in range(FOR_REQUESTS):
        queue.put(f"third {number}", bytes(BLOCK))


def outcomes_known(queue: TaskQueue, ids: "list[str]") -> "list[str]":
    """Which of them are still there. Does not read them, which would change when they go."""
    found = []
    for task_id in ids:
        try:
            queue.find(task_id)
        except UnknownTask:
            continue
        found.append(task_id)
    return found


def test_room_is_made_by_what_was_read_and_then_by_the_oldest(queue: TaskQueue) -> None:
    ids = [str(number) for number in range(ROOM)]
    for task_id in ids:
        queue.put(task_id, b"")
        run_one(queue)
    for task_id in ("30", "20"):
        assert queue.outcome(task_id) is not None
    for left in (["30"], ["30", "20"], ["30", "20", "0"], ["30", "20", "0", "1"]):
        queue.put("another", b"")
        assert outcomes_known(queue, ids) == [task_id for task_id in ids if task_id not in left]


def test_an_outcome_that_somebody_waits_for_stays_until_it_was_read(
    queue: TaskQueue, open_queue: Open
) -> None:
    client = open_queue()
    ids = [str(number) for number in range(ROOM)]
    for task_id in ids:
        ticket = queue.put(task_id, b"")
        if task_id in ("0", "1"):
            client.core.watch(client.participant, ticket.slot)
        run_one(queue)
    queue.put("another", b"")
    assert outcomes_known(queue, ids) == [task_id for task_id in ids if task_id != "2"]
    assert client.outcome("0") is not None
    queue.put("yet another", b"")
    assert outcomes_known(queue, ids) == [task_id for task_id in ids if task_id not in ("0", "2")]


def test_one_who_left_does_not_wait_any_more(queue: TaskQueue, open_queue: Open) -> None:
    client = open_queue()
    ids = [str(number) for number in range(ROOM)]
    for task_id in ids:
        client.core.watch(client.participant, queue.put(task_id, b"").slot)
        run_one(queue)
    with pytest.raises(QueueFull):
        queue.put("another", b"")
    client.close()
    queue.put("another", b"")
    assert outcomes_known(queue, ids) == ids[1:]


def test_awaited_outcomes_are_kept_by_several_who_make_room(
    queue: TaskQueue, open_queue: Open
) -> None:
    """The hints of outcomes that stay must not multiply until their ring has no room."""
    client = open_queue()
    for number in range(ROOM - 1):
        client.core.watch(client.participant, queue.put(str(number), b"").slot)
        run_one(queue)
    for _ in range(4 * SMALL.slots):
        queue.put("another", b"")
        run_one(queue)
        queue.put("the last place", b"")
        with pytest.raises(QueueFull):
            queue.put("no room", b"")
        lease = queue.claim()
        assert lease is not None
        lease.start()
        lease.finish(keep=False)
    assert client.outcome("0") is not None


def make_dead_letters(queue: TaskQueue, count: int, payload: bytes = b"") -> "list[str]":
    ids = [f"dead {number}" for number in range(count)]
    for task_id in ids:
        queue.put(task_id, payload)
        lease = queue.claim()
        assert lease is not None
        lease.dead_letter(DeadReason.UNKNOWN_TASK, "no such task")
    return ids


def test_a_dead_letter_says_why(queue: TaskQueue) -> None:
    make_dead_letters(queue, 1)
    outcome = queue.outcome("dead 0")
    assert outcome is not None
    assert (outcome.kind, outcome.dead_reason, outcome.detail) == (
        OutcomeKind.DEAD,
        DeadReason.UNKNOWN_TASK,
        "no such task",
    )
    assert queue.stats().dead == 1


def test_dead_letters_are_bounded_the_oldest_go(queue: TaskQueue) -> None:
    ids = make_dead_letters(queue, 20)
    assert outcomes_known(queue, ids) == ids[-SMALL.slots // 8 :]


def test_dead_letters_do_not_keep_the_room_that_messages_need(queue: TaskQueue) -> None:
    ids = make_dead_letters(queue, 8, bytes(BLOCK))
    for number in range(FOR_REQUESTS):
        queue.put(str(number), bytes(BLOCK))
    assert outcomes_known(queue, ids) == []
    lease = queue.claim()
    assert lease is not None
    assert lease.payload == bytes(BLOCK)
