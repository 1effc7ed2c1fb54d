"""TaskQueue in one process: what goes in comes out, and what ends stays to be read."""

from collections.abc import Callable

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.events import NewPeer, Open
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    DeathCause,
    OutcomeKind,
    QueueBusy,
    QueueError,
    Role,
    TaskQueue,
    UnknownTask,
)

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


def test_who_has_joined_is_listed(queue: TaskQueue, open_queue: Open) -> None:
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


def test_a_queue_has_a_limit_of_participants(open_queue: Open) -> None:
    for _ in range(SMALL.participants - 1):
        open_queue()
    with pytest.raises(QueueError, match="63 participants, all alive"):
        open_queue()


def test_one_supervisor_at_a_time(queue: TaskQueue, new_peer: NewPeer) -> None:
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
        DeathCause(pid=7, worker=2, signal=9, oom=True),
        DeathCause(pid=7, worker=2, signal=9, hung=True),
        DeathCause(pid=7, oom=True, hung=True),
    ],
)
def test_a_cause_of_death_keeps_what_it_says(cause: DeathCause) -> None:
    assert DeathCause.unpacked(cause.packed()) == cause


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (DeathCause(pid=1), "died"),
        (DeathCause(signal=9), "killed by SIGKILL"),
        (DeathCause(signal=200), "killed by signal 200"),
        (DeathCause(exit_code=3), "exited with status 3"),
        (DeathCause(signal=9, oom=True), "killed by SIGKILL: out of memory"),
        (DeathCause(signal=9, hung=True), "killed: its event loop was blocked"),
    ],
)
def test_a_cause_of_death_is_said_in_words(cause: DeathCause, text: str) -> None:
    assert str(cause) == text
