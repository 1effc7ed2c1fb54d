"""TaskQueue in one process: what goes in comes out, and what ends stays to be read."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    DeathCause,
    LeaseLost,
    OutcomeKind,
    QueueBusy,
    QueueError,
    QueueFull,
    Role,
    TaskQueue,
    UnknownTask,
)

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

BLOCK = 256  # bytes of the largest class
FOR_REQUESTS = 64 - 64 // 16  # blocks of a class that requests do not leave to results


def test_a_message_goes_its_way(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"payload")
    assert queue.outcome(ticket) is None
    lease = queue.claim()
    assert lease is not None
    assert (lease.task_id, lease.payload, lease.attempt) == ("id", b"payload", 0)
    assert queue.claim() is None
    assert lease.start() == 1
    assert queue.outcome("id") is None
    lease.complete(b"result")
    outcome = queue.outcome(ticket)
    assert outcome is not None
    assert (outcome.kind, outcome.data, outcome.attempts) == (OutcomeKind.RESULT, b"result", 1)
    assert queue.outcome("id") == outcome, "results can be read twice"
    assert not lease.held
    assert queue.unfinished == 0


@pytest.mark.parametrize("size", [0, 1, 7, 8, 230, 252, 256, 257, 512, 5000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payloads_and_results_of_every_size_come_out_as_they_went_in(
    queue: TaskQueue, size: int, kind: Callable[[bytes], bytes]
) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    queue.put("id", kind(data))
    lease = queue.claim()
    assert lease is not None
    assert lease.payload == data
    lease.start()
    lease.complete(kind(data[::-1]))
    outcome = queue.outcome("id")
    assert outcome is not None
    assert outcome.data == data[::-1]


def test_what_fits_into_no_block_is_no_error(queue: TaskQueue) -> None:
    assert queue.put_many([("many", b"")])
    queue.put("one", bytes(BLOCK + 1))
    for size in (0, BLOCK + 1):
        lease = queue.claim()
        assert lease is not None
        assert lease.payload == bytes(size)
        lease.start()
        lease.complete(bytes(100 * BLOCK))
        outcome = queue.outcome(lease.task_id)
        assert outcome is not None
        assert outcome.data == bytes(100 * BLOCK)


@pytest.mark.parametrize("task_id", ["x", "x" * 200, "ü" * 100, "with spaces\nand\0more"])
def test_ids_up_to_200_bytes(queue: TaskQueue, task_id: str) -> None:
    queue.put(task_id, b"p" * 100)
    lease = queue.claim()
    assert lease is not None
    assert (lease.task_id, lease.payload) == (task_id, b"p" * 100)
    assert queue.find(task_id).task_id == task_id


@pytest.mark.parametrize("task_id", ["", "x" * 201, "ü" * 101])
def test_other_ids_are_refused(queue: TaskQueue, task_id: str) -> None:
    with pytest.raises(QueueError, match="use 1 to 200"):
        queue.put(task_id, b"")
    with pytest.raises(UnknownTask):
        queue.find(task_id)


def test_an_id_that_was_never_put_is_unknown(queue: TaskQueue) -> None:
    queue.put("known", b"")
    for ask in (queue.find, queue.outcome):
        with pytest.raises(UnknownTask, match="never sent, or its result has expired"):
            ask("unknown")


def test_oldest_first_and_what_was_given_back_before_that(queue: TaskQueue) -> None:
    for number in range(4):
        queue.put(str(number), b"")
    first = queue.claim()
    assert first is not None
    first.release()
    order = []
    while (lease := queue.claim()) is not None:
        order.append(lease.task_id)
    assert order == ["0", "1", "2", "3"]


def test_giving_back_a_start_does_not_count_it(queue: TaskQueue) -> None:
    queue.put("id", b"")
    for _ in range(5):
        lease = queue.claim()
        assert lease is not None
        assert lease.attempt == 0
        assert lease.start() == 1
        lease.release()


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
    queue: TaskQueue, open_queue: Callable[..., TaskQueue]
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
    queue: TaskQueue, open_queue: Callable[..., TaskQueue]
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


def test_one_who_left_does_not_wait_any_more(
    queue: TaskQueue, open_queue: Callable[..., TaskQueue]
) -> None:
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
    queue: TaskQueue, open_queue: Callable[..., TaskQueue]
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


def test_what_ends_without_a_result_is_known_to_have_ended(queue: TaskQueue) -> None:
    queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=True)
    outcome = queue.outcome("id")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.NO_RESULT
    queue.put("id", b"again")
    assert queue.outcome("id") is None, "the retry under the same id counts"
    run_one(queue, b"at last")
    outcome = queue.outcome("id")
    assert outcome is not None
    assert outcome.data == b"at last"


def test_what_is_not_kept_is_unknown_at_once(queue: TaskQueue) -> None:
    queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=False)
    with pytest.raises(UnknownTask):
        queue.outcome("id")
    assert queue.stats().free == SMALL.slots


def test_of_two_messages_with_one_id_the_newer_is_found(queue: TaskQueue) -> None:
    older = queue.put("id", b"")
    run_one(queue, b"older")
    newer = queue.put("id", b"")
    run_one(queue, b"newer")
    assert queue.find("id") == newer != older
    outcome = queue.outcome(older)
    assert outcome is not None
    assert outcome.data == b"older", "a ticket names one of them"


def test_a_ticket_whose_slot_is_used_again_follows_the_id(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=False)
    for number in range(SMALL.slots):
        queue.put(str(number), b"")
        run_one(queue)
    with pytest.raises(UnknownTask):
        queue.outcome(ticket)
    queue.put("id", b"")
    assert queue.outcome(ticket) is None


@pytest.mark.parametrize("end", ["complete", "finish", "dead_letter", "release", "start", "ack"])
def test_one_whose_lease_was_taken_away_changes_nothing(
    queue: TaskQueue, open_queue: Callable[..., TaskQueue], end: str
) -> None:
    late, other = queue, open_queue()
    late.put("id", b"payload" * 50)
    lease = late.claim()
    assert lease is not None
    if end != "start":
        lease.start()
    # Behind the lease's back, as an expiry does: the message is another one's now.
    late.core.release(late.participant, lease.slot, lease.word)
    theirs = other.claim()
    assert theirs is not None
    theirs.start()
    calls: dict[str, Callable[[], object]] = {
        "complete": lambda: lease.complete(b"late" * 100),
        "finish": lambda: lease.finish(keep=False),
        "dead_letter": lambda: lease.dead_letter(DeadReason.UNPARSABLE, "late"),
        "release": lease.release,
        "start": lease.start,
        "ack": lease.ack,
    }
    with pytest.raises(LeaseLost):
        calls[end]()
    assert not lease.held
    theirs.complete(b"in time" * 100)
    outcome = other.outcome("id")
    assert outcome is not None
    assert outcome.data == b"in time" * 100


def test_an_ended_lease_is_lost_to_every_step(queue: TaskQueue) -> None:
    queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.complete(b"")
    for step in (lease.start, lease.ack, lease.release):
        with pytest.raises(LeaseLost, match="has ended"):
            step()


def test_a_step_that_is_refused_leaves_the_lease_held(queue: TaskQueue) -> None:
    queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    with pytest.raises(ValueError, match="wrong step"):
        lease.finish(keep=False)
    assert lease.held
    lease.start()
    lease.ack()
    with pytest.raises(ValueError, match="wrong step"):
        lease.release()
    assert lease.held
    assert queue.unfinished == 1
    lease.finish(keep=False)
    assert queue.stats().free == SMALL.slots


def test_steps_have_an_order(queue: TaskQueue) -> None:
    queue.put("id", b"")
    lease = queue.claim()
    assert lease is not None
    with pytest.raises(ValueError, match="wrong step"):
        lease.complete(b"before it was started")
    with pytest.raises(ValueError, match="wrong step"):
        lease.ack()
    lease.start()
    with pytest.raises(ValueError, match="wrong step"):
        lease.start()
    lease.ack()
    lease.complete(b"")


def test_leaving_gives_back_what_was_held(
    queue: TaskQueue, open_queue: Callable[..., TaskQueue]
) -> None:
    leaving = open_queue()
    for task_id in ("claimed", "started", "acknowledged"):
        queue.put(task_id, b"")
        lease = leaving.claim()
        assert lease is not None
        if task_id != "claimed":
            lease.start()
        if task_id == "acknowledged":
            lease.ack()
    leaving.close()
    again = {(lease.task_id, lease.attempt) for lease in (queue.claim(), queue.claim()) if lease}
    assert again == {("claimed", 0), ("started", 0)}
    assert queue.claim() is None
    outcome = queue.outcome("acknowledged")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.WORKER_LOST
    leaving.close()
    with pytest.raises(ValueError, match="closed"):
        leaving.put("id", b"")


def test_every_state_is_counted(queue: TaskQueue) -> None:
    for number in range(6):
        queue.put(str(number), b"")
    leases = [queue.claim() for _ in range(5)]
    for lease in leases[1:]:
        assert lease is not None
        lease.start()
    assert leases[2] is not None
    leases[2].ack()
    assert leases[3] is not None
    leases[3].complete(b"")
    assert leases[4] is not None
    leases[4].dead_letter(DeadReason.UNPARSABLE, "")
    stats = queue.stats()
    assert (stats.ready, stats.leased, stats.running, stats.done, stats.dead) == (1, 1, 2, 1, 1)
    assert (stats.free, stats.capacity) == (SMALL.slots - 6, SMALL.slots)


def test_who_has_joined_is_listed(queue: TaskQueue, open_queue: Callable[..., TaskQueue]) -> None:
    worker = open_queue(role=Role.WORKER, guardian=queue.participant, tag=7)
    found = {one.index: one for one in queue.participants()}
    assert set(found) == {queue.participant, worker.participant}
    assert found[worker.participant].role == Role.WORKER
    assert (found[worker.participant].guardian, found[worker.participant].tag) == (
        queue.participant,
        7,
    )
    worker.close()
    assert [one.index for one in queue.participants()] == [queue.participant]


def test_a_queue_has_a_limit_of_participants(open_queue: Callable[..., TaskQueue]) -> None:
    for _ in range(SMALL.participants - 1):
        open_queue()
    with pytest.raises(QueueError, match="63 participants, all alive"):
        open_queue()


def test_one_supervisor_at_a_time(queue: TaskQueue, new_peer: "Callable[[], Peer]") -> None:
    peer = new_peer()
    peer.join("role=Role.SUPERVISOR")
    peer.ask("queue.become_supervisor('the first')")
    with pytest.raises(QueueBusy, match="'the first'") as caught:
        queue.become_supervisor("the second")
    assert (caught.value.pid, caught.value.label) == (peer.pid, "the first")
    peer.kill()
    queue.become_supervisor("the second")


@pytest.mark.parametrize("starts", [0, 256, -1])
def test_the_number_of_deliveries_has_limits(queue: TaskQueue, starts: int) -> None:
    with pytest.raises(QueueError, match="use 1 to 255"):
        queue.set_max_deliveries(starts)


@pytest.mark.parametrize(
    "cause",
    [
        DeathCause(),
        DeathCause(pid=4_194_304, worker=0, signal=9),
        DeathCause(pid=1, worker=65_534, signal=64),
        DeathCause(pid=7, exit_code=255),
    ],
)
def test_a_cause_of_death_keeps_what_it_says(cause: DeathCause) -> None:
    assert DeathCause.unpacked(cause.packed()) == cause
