"""Time limits: a task whose worker is killed for it has timed out, whoever repairs."""

import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.ipc.events import NewPeer, Open, Start, soon

from taskiq_supervise.ipc import (
    Burial,
    DeathCause,
    LeaseLost,
    OutcomeKind,
    TaskQueue,
)
from taskiq_supervise.ipc.locks import participant_byte

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


def runs(peer: "Peer", guardian: int, *, ack: bool = False) -> None:
    """A worker of that guardian, slot 3, claims what there is, and starts it."""
    peer.join(f"role=Role.WORKER, guardian={guardian}, tag=4")
    peer.ask("leases = []\nwhile lease := queue.claim(): leases.append(lease); lease.start()")
    if ack:
        peer.ask("for lease in leases: lease.ack()")


@pytest.mark.parametrize("ack", [False, True])
def test_its_death_ends_the_task_and_the_others_are_given_back(
    queue: TaskQueue, new_peer: NewPeer, ack: bool
) -> None:
    for task_id in ("slow", "other"):
        queue.put(task_id, b"")
    worker = new_peer()
    runs(worker, queue.participant, ack=ack)
    assert queue.time_out(worker.pid, "slow")
    assert queue.outcome("slow") is None, "it could still complete it"
    queue.explain(worker.pid)
    worker.kill()
    cause = DeathCause(worker.pid, 3, signal=signal.SIGKILL)
    others = {"lost": ("other",)} if ack else {"redelivered": ("other",)}
    assert queue.bury(worker.pid, cause) == Burial(timed_out=("slow",), **others)
    outcome = queue.outcome("slow")
    assert outcome is not None
    assert (outcome.kind, outcome.attempts, outcome.cause) == (OutcomeKind.TIMED_OUT, 1, cause)
    assert outcome.data == b""
    if not ack:
        lease = queue.claim()
        assert lease is not None
        assert (lease.task_id, lease.attempt) == ("other", 0), "its start is not counted"
        lease.release()


def test_it_is_not_started_again_although_it_may_be(queue: TaskQueue, new_peer: NewPeer) -> None:
    """With a start that is counted, and starts left."""
    queue.put("slow", b"", max_deliveries=5)
    worker = new_peer()
    runs(worker, queue.participant)
    assert queue.time_out(worker.pid, "slow")
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)).timed_out == ("slow",)
    assert queue.claim() is None


def test_a_task_that_completes_first_has_its_result(queue: TaskQueue, new_peer: NewPeer) -> None:
    queue.put("slow", b"")
    worker = new_peer()
    runs(worker, queue.participant)
    assert queue.time_out(worker.pid, "slow")
    worker.ask("leases[0].complete(b'in time')")
    assert not queue.time_out(worker.pid, "slow")
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)) == Burial()
    outcome = queue.outcome("slow")
    assert outcome is not None
    assert (outcome.kind, outcome.data) == (OutcomeKind.RESULT, b"in time")


def test_only_what_that_process_of_ours_runs_is_marked(
    queue: TaskQueue, open_queue: Open, new_peer: NewPeer
) -> None:
    queue.put("slow", b"")
    worker = new_peer()
    worker.join(f"role=Role.WORKER, guardian={queue.participant}")
    worker.ask("lease = queue.claim()")
    assert not queue.time_out(worker.pid, "slow"), "it has not been started"
    worker.ask("lease.start()")
    assert not queue.time_out(worker.pid, "another")
    assert not queue.time_out(worker.pid, "x" * 300)
    assert not queue.time_out(worker.pid, "")
    assert not queue.time_out(os.getpid(), "slow")
    assert not open_queue().time_out(worker.pid, "slow"), "it is not this one's worker"
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)).redelivered == ("slow",)


def test_a_start_after_it_was_given_back_is_another_one(
    queue: TaskQueue, new_peer: NewPeer
) -> None:
    """The same worker, the same attempt: the word of the slot is the same again."""
    queue.put("slow", b"")
    worker = new_peer()
    runs(worker, queue.participant)
    assert queue.time_out(worker.pid, "slow")
    worker.ask("leases[0].release(); lease = queue.claim(); lease.start(); lease.attempt")
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)) == Burial(redelivered=("slow",))


def test_of_two_messages_with_one_id_the_running_one_is_meant(
    queue: TaskQueue, new_peer: NewPeer
) -> None:
    """As after a retry: the ended one and one that waits are there too."""
    queue.put("again", b"first")
    ended = queue.claim()
    assert ended is not None
    ended.start()
    ended.finish(keep=True)
    running = queue.put("again", b"second")
    worker = new_peer()
    runs(worker, queue.participant)
    waiting = queue.put("again", b"third")
    assert queue.time_out(worker.pid, "again")
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)).timed_out == ("again",)
    outcome = queue.outcome(running)
    assert outcome is not None
    assert outcome.kind is OutcomeKind.TIMED_OUT
    assert queue.outcome(waiting) is None


async def test_a_client_that_waits_learns_it_from_whoever_repairs(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """Nobody buries: the supervisor died too, after the mark."""
    supervisor, worker = new_peer(), new_peer()
    guardian = supervisor.join("role=Role.SUPERVISOR")
    waiting = await start_queue()
    ticket = await waiting.put("slow", b"")
    runs(worker, guardian)
    assert supervisor.ask(f"queue.time_out({worker.pid}, 'slow')")
    supervisor.kill()
    worker.kill()
    outcome = await soon(waiting.wait(ticket))
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.TIMED_OUT, 1)
    assert outcome.cause.pid == worker.pid


def test_who_takes_over_the_place_of_the_dead_ends_it_too(
    queue: TaskQueue, open_queue: Open, new_peer: NewPeer
) -> None:
    queue.put("slow", b"")
    worker = new_peer()
    runs(worker, queue.participant)
    place = worker.ask("queue.participant")
    assert queue.time_out(worker.pid, "slow")
    worker.kill()
    for index in range(place + 1, queue.geometry.participants):  # no other one is free
        assert queue.take_lock(participant_byte(index))
    queue.core.explain(place)
    assert open_queue().participant == place
    outcome = queue.outcome("slow")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.TIMED_OUT


def test_a_worker_that_is_told_too_late_still_holds_its_task(
    queue: TaskQueue, new_peer: NewPeer
) -> None:
    """The mark takes nothing away from the living: it may give the task back."""
    queue.put("slow", b"")
    worker = new_peer()
    runs(worker, queue.participant)
    assert queue.time_out(worker.pid, "slow")
    worker.ask("leases[0].release()")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    assert not queue.time_out(worker.pid, "slow")
    worker.kill()
    assert queue.bury(worker.pid, DeathCause(worker.pid)) == Burial()
    lease.complete(b"")
    with pytest.raises(LeaseLost):
        lease.complete(b"")
