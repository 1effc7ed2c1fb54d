"""Looking at messages, and having a hand in them, from outside: whatever others do meanwhile."""

import time
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.events import HOUR, NewPeer, Open, Start, pending, soon
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    Lease,
    MessageState,
    MessageView,
    OutcomeKind,
    QueueFull,
    Role,
    TaskQueue,
    Ticket,
    UnknownTask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ipc.conftest import Peer

LARGE = 5000
SIZES = [0, 200, LARGE]


def taken(queue: TaskQueue, starts: int = 1) -> Lease:
    lease = queue.claim()
    assert lease is not None
    if starts:
        lease.start()
    return lease


def only(queue: TaskQueue) -> MessageView:
    [view] = queue.messages()
    return view


def dead(queue: TaskQueue, payload: bytes = b"payload", **arguments: int) -> Ticket:
    ticket = queue.put("id", payload, **arguments)  # type: ignore[arg-type]
    taken(queue).dead_letter(DeadReason.UNPARSABLE, "no JSON")
    return ticket


def test_every_state_is_shown(queue: TaskQueue, open_queue: Open) -> None:
    worker = open_queue(role=Role.WORKER, guardian=queue.participant, tag=8)
    begin = time.time()
    for state in ("dead", "done", "acked", "running", "leased", "ready"):
        queue.put(state, b"x" * 10, buffers=[b"y" * 5], max_deliveries=4, priority=5)
        if state == "ready":
            break
        lease = taken(worker, state != "leased")
        if state == "acked":
            lease.ack()
        elif state == "done":
            lease.complete(b"")
        elif state == "dead":
            lease.dead_letter(DeadReason.UNKNOWN_TASK, "no such task")
    queue.put("delayed", b"", due=begin + HOUR, expires=begin + 2 * HOUR)
    views = {view.ticket.task_id: view for view in queue.messages()}
    assert list(views) == ["dead", "done", "acked", "running", "leased", "ready", "delayed"]
    assert {task_id: view.state.name.lower() for task_id, view in views.items()} == {
        task_id: task_id for task_id in views
    }
    assert [view.attempts for view in views.values()] == [1, 1, 1, 1, 0, 0, 0]
    assert {view.size for view in views.values()} == {0, 15}
    for task_id, view in views.items():
        assert begin - 1 < view.created < time.time() + 1
        assert (view.ended is not None) == (task_id in ("dead", "done"))
        assert view.ticket == queue.find(task_id)
        holds = task_id in ("acked", "running", "leased", "dead")
        assert view.worker == (7 if holds else None)
        assert (view.worker_pid is not None) == holds
        assert view.max_deliveries == (0 if task_id == "delayed" else 4)
    assert views["delayed"].due == pytest.approx(begin + HOUR, abs=1e-6)
    assert views["delayed"].expires == pytest.approx(begin + 2 * HOUR, abs=1e-6)
    assert (views["ready"].due, views["ready"].expires) == (None, None)
    assert views["dead"].dead_reason is DeadReason.UNKNOWN_TASK
    assert views["dead"].detail == "no such task"


def test_states_can_be_chosen(queue: TaskQueue) -> None:
    for number in range(3):
        queue.put(str(number), b"")
    taken(queue)
    shown = queue.messages({MessageState.READY, MessageState.DELAYED})
    assert [view.ticket.task_id for view in shown] == ["1", "2"]
    assert list(queue.messages(set())) == []


def test_a_death_is_shown_with_its_cause(open_queue: Open, new_peer: NewPeer) -> None:
    client, worker = open_queue(), new_peer()
    index = worker.join("role=Role.WORKER, tag=3")
    client.put("id", b"", max_deliveries=1)
    worker.ask("lease = queue.claim(); lease.start()")
    assert only(client).worker_pid == worker.pid
    worker.kill()
    client.recover(index)
    view = only(client)
    assert (view.state, view.dead_reason) == (MessageState.DEAD, DeadReason.MAX_DELIVERIES)
    assert (view.worker_pid, view.worker) == (worker.pid, 2)
    assert view.cause is not None
    assert "died" in view.detail


@pytest.mark.parametrize("size", SIZES)
def test_a_payload_can_be_read_without_taking_it(queue: TaskQueue, size: int) -> None:
    ticket = queue.put("id", bytes(size), buffers=[b"b" * size, b""])

    def look(state: MessageState) -> None:
        assert only(queue).state is state
        payload, buffers = queue.peek(ticket)
        assert (payload, [bytes(one) for one in buffers]) == (bytes(size), [b"b" * size, b""])

    look(MessageState.READY)
    lease = taken(queue, 0)
    look(MessageState.LEASED)
    lease.start()
    look(MessageState.RUNNING)
    lease.ack()
    look(MessageState.ACKED)
    lease.dead_letter(DeadReason.UNPARSABLE, "")
    look(MessageState.DEAD)
    queue.drop(ticket)
    with pytest.raises(UnknownTask, match="has left queue 'q'"):
        queue.peek(ticket)


def test_there_is_nothing_to_read_once_it_has_ended(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"payload")
    run_one(queue)
    for look in (queue.peek, queue.requeue):
        with pytest.raises(UnknownTask):
            look(ticket)
    assert not queue.discard(ticket)
    with pytest.raises(UnknownTask):
        queue.peek(Ticket(ticket.slot, ticket.generation + 1, "id"))


def test_a_ticket_that_never_was_is_unknown(queue: TaskQueue) -> None:
    for ticket in (Ticket(0, 5, "id"), Ticket(SMALL.slots - 1, 1, "id")):
        for look in (queue.peek, queue.requeue, queue.drop):
            with pytest.raises(UnknownTask):
                look(ticket)
        assert not queue.discard(ticket)


@pytest.mark.parametrize("size", SIZES)
def test_a_dead_letter_can_be_sent_again(queue: TaskQueue, size: int) -> None:
    old = dead(queue, bytes(size), priority=8, max_deliveries=2)
    new = queue.requeue(old)
    view = only(queue)
    assert (view.ticket, view.state, view.attempts) == (new, MessageState.READY, 0)
    assert (view.priority, view.max_deliveries, view.size) == (8, 2, size)
    lease = taken(queue)
    assert (lease.task_id, lease.payload, lease.attempt) == ("id", bytes(size), 1)
    lease.complete(b"at last")
    outcome = queue.outcome(old)
    assert outcome is not None
    assert outcome.data == b"at last", "who had the old ticket follows the id"
    assert queue.files.names() == []
    with pytest.raises(UnknownTask):
        queue.requeue(old)


def test_what_is_sent_again_takes_its_buffers_along(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"payload", buffers=[b"small", bytes(LARGE)])
    taken(queue).dead_letter(DeadReason.UNPARSABLE, "")
    queue.requeue(ticket)
    lease = taken(queue)
    assert (lease.payload, [bytes(one) for one in lease.buffers]) == (
        b"payload", [b"small", bytes(LARGE)],
    )  # fmt: skip


def test_only_dead_letters_are_sent_again(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"")
    with pytest.raises(UnknownTask, match="is no dead letter"):
        queue.requeue(ticket)
    assert queue.stats().ready == 1


def test_a_full_queue_keeps_the_dead_letter(queue: TaskQueue) -> None:
    ticket = dead(queue, b"payload")
    for number in range(ROOM - 1):
        queue.put(str(number), b"")
    try:
        queue.requeue(ticket)
    except QueueFull:
        assert queue.peek(ticket)[0] == b"payload"
    else:  # it gave its own place
        assert queue.peek(queue.find("id"))[0] == b"payload"


async def test_who_waits_for_a_dead_letter_that_is_sent_again_gets_its_result(
    start_queue: Start,
) -> None:
    client, worker = await start_queue(), await start_queue(role=Role.WORKER)
    ticket = dead(client.queue)
    client.queue.requeue(ticket)
    wait = await pending(client.wait(ticket))
    lease = await soon(worker.claim())
    lease.start()
    lease.complete(b"result")
    assert (await soon(wait)).data == b"result"


@pytest.mark.parametrize("size", SIZES)
def test_outcomes_and_dead_letters_can_be_dropped(queue: TaskQueue, size: int) -> None:
    letter = dead(queue, bytes(size))
    queue.drop(letter)
    result = queue.put("result", b"")
    lease = taken(queue)
    lease.complete(bytes(size), [bytes(size)])
    queue.drop(result)
    for ticket in (letter, result):
        with pytest.raises(UnknownTask):
            queue.drop(ticket)
        with pytest.raises(UnknownTask):
            queue.outcome(ticket)
    assert queue.stats().free == SMALL.slots
    assert queue.files.names() == []


def test_what_has_not_ended_cannot_be_dropped(queue: TaskQueue) -> None:
    ticket = queue.put("id", b"")
    with pytest.raises(UnknownTask, match="has no outcome"):
        queue.drop(ticket)
    lease = taken(queue, 0)
    with pytest.raises(UnknownTask, match="has no outcome"):
        queue.drop(ticket)
    assert lease.start() == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("delay", [0, HOUR])
async def test_what_is_discarded_never_runs_and_who_waits_learns_it(
    start_queue: Start, size: int, delay: float
) -> None:
    client, other = await start_queue(), await start_queue()
    ticket = await client.put("id", bytes(size), due=time.time() + delay)
    wait = await pending(client.wait(ticket))
    assert other.queue.discard(ticket)
    outcome = await soon(wait)
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.DISCARDED, 0)
    assert not other.queue.discard(ticket)
    assert client.queue.claim() is None
    assert client.queue.files.names() == []


@pytest.mark.parametrize("starts", [0, 1])
def test_what_somebody_holds_is_not_discarded(queue: TaskQueue, starts: int) -> None:
    ticket = queue.put("id", b"")
    lease = taken(queue, starts)
    assert not queue.discard(ticket)
    assert lease.held
    lease.release()
    assert queue.discard(ticket)
    assert queue.claim() is None


RACERS = """
def until(go):
    while not os.path.exists(go): pass
def claim_all():
    taken = []
    while (lease := queue.claim()) is not None:
        lease.start(); lease.complete(b''); taken.append(lease.task_id)
    return taken
def discard_all(tickets):
    return [ticket[2] for ticket in tickets if queue.discard(Ticket(*ticket))]
def requeue_all(tickets):
    done = []
    for ticket in tickets:
        try: done.append(queue.requeue(Ticket(*ticket)).task_id)
        except UnknownTask: pass
    return done
def drop_all(tickets):
    done = []
    for ticket in tickets:
        try: queue.drop(Ticket(*ticket)); done.append(ticket[2])
        except UnknownTask: pass
    return done
def look_all(tickets):
    seen = 0
    for _ in range(20):
        seen += len(list(queue.messages()))
        for ticket in tickets:
            try: assert queue.peek(Ticket(*ticket))[0] == ticket[2].encode() * 100
            except UnknownTask: pass
    return seen
"""


@pytest.fixture
def race(
    open_queue: Open, new_peer: NewPeer
) -> "Callable[[TaskQueue, int, list[str]], list[list[str]]]":
    """Lets processes do what the sources say at the same moment, round after round."""
    peers: list[Peer] = []

    def run(client: TaskQueue, number: int, sources: "list[str]") -> "list[list[str]]":
        while len(peers) < len(sources):
            peers.append(new_peer())
            peers[-1].join()
            peers[-1].ask(RACERS)
        go = client.directory / f"go-{number}"
        begun = [
            peer.begin(f"until({str(go)!r})\n{source}")
            for peer, source in zip(peers, sources, strict=True)
        ]
        go.touch()
        return [peer.answer(one) for peer, one in zip(peers, begun, strict=True)]

    return run


def test_each_message_is_either_discarded_or_run(
    queue: TaskQueue, race: "Callable[..., list[list[str]]]"
) -> None:
    for number in range(4):
        ids = [f"{number}-{n}" for n in range(40)]
        tickets = [tuple(queue.put(task_id, task_id.encode() * 100)) for task_id in ids]
        run, first, second, _ = race(
            queue, number,
            ["claim_all()", f"discard_all({tickets})", f"discard_all({tickets[::-1]})",
             f"look_all({tickets[:5]})"],
        )  # fmt: skip
        assert sorted(run + first + second) == sorted(ids)
        for task_id in ids:
            outcome = queue.outcome(task_id)
            assert outcome is not None
            assert outcome.kind is OutcomeKind(
                OutcomeKind.RESULT if task_id in run else OutcomeKind.DISCARDED
            )
            queue.drop(queue.find(task_id))
        assert queue.stats().free == SMALL.slots
        assert queue.files.names() == []


def test_each_dead_letter_is_sent_again_or_dropped_and_none_is_lost(
    queue: TaskQueue, race: "Callable[..., list[list[str]]]"
) -> None:
    for number in range(10):
        ids = [f"{number}-{n}" for n in range(SMALL.slots // 8)]
        tickets = []
        for task_id in ids:
            tickets.append(tuple(queue.put(task_id, task_id.encode() * 100)))
            taken(queue).dead_letter(DeadReason.UNPARSABLE, "")
        again, dropped = race(
            queue, number, [f"requeue_all({tickets})", f"drop_all({tickets[::-1]})"]
        )
        assert set(again) | set(dropped) == set(ids)
        run = []
        while (lease := queue.claim()) is not None:
            assert lease.payload == lease.task_id.encode() * 100
            run.append(lease.task_id)
            lease.start()
            lease.finish(keep=False)
        assert sorted(run) == sorted(again), "what was sent again is there once"
        assert queue.stats().free == SMALL.slots
        assert queue.files.names() == []


def test_of_two_who_send_a_dead_letter_again_only_one_does(
    queue: TaskQueue, race: "Callable[..., list[list[str]]]"
) -> None:
    for number in range(10):
        tickets, ids = [], []
        for n in range(SMALL.slots // 8):
            task_id = f"{number}-{n}"
            tickets.append(tuple(queue.put(task_id, task_id.encode() * 100)))
            ids.append(task_id)
            taken(queue).dead_letter(DeadReason.UNPARSABLE, "")
        again = race(queue, number, [f"requeue_all({tickets})"] * 2)
        assert sorted(again[0] + again[1]) == sorted(ids)
        leases = queue.claim_many(SMALL.slots)
        assert len(leases) == len(tickets)
        queue.finish_many(leases)
