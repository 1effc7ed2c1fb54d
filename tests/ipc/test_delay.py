"""Delayed messages: never early, soon when due, whoever dies or stands still meanwhile."""

import asyncio
import time

import pytest
from tests.ipc.conftest import Peer, run_one, settled
from tests.ipc.events import (
    HOUR,
    WORKER,
    Clockwork,
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
    MessageState,
    QueueError,
    TaskQueue,
    custodian,
)


def claim_due(worker: TaskQueue, due: float) -> str:
    """The next message's id; it must not come before its time."""
    lease = claimed_when_there(worker)
    assert time.time() >= due, "it came early"
    lease.start()
    lease.finish(keep=False)
    return lease.task_id


async def test_never_early_and_seldom_more_than_20_ms_late(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client, worker = await start_queue(), new_peer()
    worker.join_async("role=Role.WORKER")
    claims = worker.begin(
        "seen = []\n"
        "while len(seen) < 50:\n"
        "    lease = await waiting.claim()\n"
        "    seen.append((lease.task_id, time.time()))\n"
        "    lease.start(); lease.finish(keep=False)\n"
        "seen"
    )
    begin = time.time() + 0.05
    dues = {str(number): begin + number * 0.01 for number in range(50)}
    for number in range(50):  # in any order
        task_id = str(number * 7 % 50)
        await client.put(task_id, b"", due=dues[task_id])
    late = [
        seen - dues[task_id] for task_id, seen in await asyncio.to_thread(worker.answer, claims)
    ]
    assert len(late) == 50
    assert min(late) >= 0
    assert sum(one > 0.02 for one in late) <= 45, late  # other programs use this machine too


@pytest.mark.parametrize("due", [0.0, 1.0, -0.5])
def test_what_is_due_already_is_ready_at_once(queue: TaskQueue, due: float) -> None:
    queue.put("id", b"", due=due if due >= 0 else time.time() + due)
    assert run_one(queue) == "id"


@pytest.mark.parametrize("time_", [-1.0, float("nan"), float("inf"), 1e30])
def test_times_that_are_none_are_refused(queue: TaskQueue, time_: float) -> None:
    for argument in ("due", "expires"):
        with pytest.raises(QueueError, match="use Unix time in seconds"):
            queue.put("id", b"", **{argument: time_})  # type: ignore[arg-type]
    assert queue.stats().free == queue.geometry.slots


async def test_an_earlier_one_that_was_put_after_a_later_one_comes_first(
    start_queue: Start,
) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    claim = await pending(worker.claim())
    now = time.time()
    for task_id, after in (("late", HOUR), ("later", 2 * HOUR), ("soon", 0.02)):
        await client.put(task_id, b"", due=now + after)
    assert (await soon(claim)).task_id == "soon"
    assert client.queue.stats().delayed == 2


async def test_many_that_are_due_at_once_all_come(start_queue: Start) -> None:
    client = await start_queue()
    workers = [await start_queue(**WORKER) for _ in range(3)]
    due = time.time() + 0.1
    for number in range(ROOM):
        await client.put(str(number), b"", due=due, priority=number % 10)
    taken: list[str] = []

    async def work(worker: AsyncTaskQueue) -> None:
        while len(taken) < ROOM:
            lease = await worker.claim()
            assert time.time() >= due
            lease.start()
            lease.complete(b"")
            taken.append(lease.task_id)

    tasks = [asyncio.ensure_future(work(worker)) for worker in workers]
    await soon(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(taken, key=int) == [str(number) for number in range(ROOM)]


async def test_waiting_for_what_is_far_away_costs_one_timer(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_queue()
    clockwork = Clockwork(monkeypatch, client)
    for number in range(20):
        client.queue.put(str(number), b"", due=time.time() + HOUR + number)
        await settled()
    assert len(clockwork.timers) == 1
    assert clockwork.rings == 1, "the custodian is rung for an earlier time, not for a later one"


@pytest.mark.parametrize("after", [0.05, HOUR])
def test_a_delay_outlives_everybody(open_queue: Open, new_peer: NewPeer, after: float) -> None:
    due = time.time() + after
    peers = joined(new_peer, 3)
    peers[2].ask(f"queue.put('id', b'payload' * 50, due={due!r}, priority=7).slot")
    for peer in peers:
        peer.kill()
    worker, custodian = open_queue(**WORKER), new_peer()
    custodian.join_async()
    if after < HOUR:
        assert claim_due(worker, due) == "id"
    else:
        [view] = worker.messages({MessageState.DELAYED})
        assert view.due == pytest.approx(due, abs=1e-6)
        assert (view.ticket.task_id, view.priority) == ("id", 7)
        assert worker.peek(view.ticket)[0] == b"payload" * 50


def test_the_custodians_death_delays_nothing_for_long(open_queue: Open, new_peer: NewPeer) -> None:
    worker, peers = open_queue(**WORKER), joined(new_peer, 3)
    dues = [time.time() + 0.1 * (1 + number) for number in range(3)]
    for number, due in enumerate(dues):
        worker.put(str(number), b"", due=due)
    for number, peer in enumerate(peers[:2]):  # one office after the other
        peer.kill()
        assert claim_due(worker, dues[number]) == str(number)
    assert claim_due(worker, dues[2]) == "2"


def test_a_custodian_that_stands_still_is_stood_in_for(open_queue: Open, new_peer: NewPeer) -> None:
    worker, peers = open_queue(**WORKER), joined(new_peer, 2)
    assert worker.core.custodian == peers[0].ask("queue.participant")
    assert worker.core.deputy == peers[1].ask("queue.participant")
    dues = [time.time() + 0.05 * (1 + number) for number in range(3)]
    worker.put("0", b"", due=dues[0])
    peers[0].stop()
    for number in (1, 2):
        worker.put(str(number), b"", due=dues[number])
    for number, due in enumerate(dues):
        assert claim_due(worker, due) == str(number)
    peers[0].go_on()
    assert peers[0].ask("waiting.custodian.active") is True
    assert worker.claim() is None, "it does nothing twice"


def producing(new_peer: NewPeer) -> Peer:
    """A process that puts; the custodian is another one."""
    custodian, producer = new_peer(), new_peer()
    custodian.join_async()
    producer.join()
    return producer


def put_silently(due: float) -> str:
    """For a process: it says when its message is due, and does not ring the custodian."""
    return f"queue.core.put(queue.participant, 'its', b'', 0, 0, 5, 0, False, {int(due * 1e9)}, 0)"


def test_a_producer_that_stands_still_delays_nobody_elses_messages(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, producer = open_queue(**WORKER), producing(new_peer)
    due = time.time() + 0.1
    producer.begin(f"{put_silently(due)}\nos.kill(os.getpid(), signal.SIGSTOP)")
    producer.wait_stopped()
    began = time.monotonic()
    worker.put("other", b"", due=due + 0.01)
    assert {claim_due(worker, due) for _ in range(2)} == {"its", "other"}
    assert time.monotonic() - began < 5, "the audit found it"
    producer.go_on()


def test_a_producer_that_is_killed_before_it_rings_delays_nothing(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, producer = open_queue(**WORKER), producing(new_peer)
    due = time.time() + 0.1
    producer.ask(put_silently(due))
    producer.kill()
    assert claim_due(worker, due) == "its"


async def test_the_wall_clock_decides_also_when_it_is_set(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock()
    monkeypatch.setattr(custodian, "time", clock)
    monkeypatch.setattr(custodian, "_CLOCK_CHECK", 0.005)
    client, worker = await start_queue(), await start_queue(**WORKER)
    claim = await pending(worker.claim())
    clock.ahead = -HOUR
    await client.put("soon", b"", due=time.time() + 0.01)
    await client.put("in an hour", b"", due=time.time() + HOUR)
    looks = clock.looks
    await later(lambda: clock.looks >= looks + 20)
    assert not claim.done(), "the clock was set back: it is not due yet"
    clock.ahead = 0
    assert (await soon(claim)).task_id == "soon"
    claim = await pending(worker.claim())
    clock.ahead = 2 * HOUR
    assert (await soon(claim)).task_id == "in an hour"


def test_what_is_due_when_nobody_has_an_event_loop_waits_for_one_who_has(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, late = open_queue(**WORKER), new_peer()
    due = time.time() + 0.01
    worker.put("id", b"", due=due)
    eventually(lambda: time.time() > due)
    assert worker.claim() is None
    late.join_async()
    assert claim_due(worker, due) == "id"


def test_a_delay_that_was_taken_and_given_back_is_kept(open_queue: Open) -> None:
    """Who discards takes the message first, and may be killed before it ends it."""
    queue = open_queue()
    ticket = queue.put("id", b"", due=time.time() + HOUR)
    word = queue.core.take(queue.participant, ticket.slot, ticket.generation)
    assert word is not None
    queue.core.release(queue.participant, ticket.slot, word)
    assert queue.claim() is None
    assert queue.stats().delayed == 1


def test_a_delay_is_kept_when_who_took_it_died(open_queue: Open, new_peer: NewPeer) -> None:
    client, peer = open_queue(), new_peer()
    index = peer.join()
    ticket = client.put("id", b"", due=time.time() + HOUR)
    assert peer.ask(f"queue.core.take(queue.participant, {ticket.slot}, {ticket.generation})")
    peer.kill()
    assert client.recover(index) is not None
    assert client.claim() is None
    assert client.stats().delayed == 1
