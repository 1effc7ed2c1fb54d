"""Leases: their steps, their ends, and who holds none any more."""

from typing import TYPE_CHECKING

import pytest
from tests.ipc.events import Open
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    LeaseLost,
    OutcomeKind,
    TaskQueue,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 256  # bytes of the largest class

FOR_REQUESTS = 64 - 64 // 16  # blocks of a class that requests do not leave to results


def test_giving_back_a_start_does_not_count_it(queue: TaskQueue) -> None:
    queue.put("id", b"")
    for _ in range(5):
        lease = queue.claim()
        assert lease is not None
        assert lease.attempt == 0
        assert lease.start() == 1
        lease.release()


@pytest.mark.parametrize("end", ["complete", "finish", "dead_letter", "release", "start", "ack"])
def test_one_whose_lease_was_taken_away_changes_nothing(
    queue: TaskQueue, open_queue: Open, end: str
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


def test_leaving_gives_back_what_was_held(queue: TaskQueue, open_queue: Open) -> None:
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
