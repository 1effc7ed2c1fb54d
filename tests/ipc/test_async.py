"""AsyncTaskQueue: woken, not polled; spread before depth; not stopped by one that stands still."""

import asyncio
import os
import signal

import pytest
from tests.ipc.conftest import is_readable, rung, settled
from tests.ipc.events import WORKER, Clockwork, NewPeer, Open, Start, joined, pending, soon
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import OutcomeKind, QueueFull, UnknownTask
from taskiq_supervise.ipc.waits import SWEEP


async def test_a_message_wakes_the_one_that_waits_for_it(start_queue: Start) -> None:
    worker, client = await start_queue(**WORKER), await start_queue()
    claim = await pending(worker.claim())
    ticket = await client.put("id", b"payload")
    lease = await soon(claim)
    assert lease.payload == b"payload"
    wait = await pending(client.wait(ticket))
    lease.start()
    lease.complete(b"result")
    outcome = await soon(wait)
    assert (outcome.kind, outcome.data) == (OutcomeKind.RESULT, b"result")


async def test_who_waits_is_rung_once_and_sets_no_timer(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_queue()  # the first is the custodian and has its timer already
    worker = await start_queue(**WORKER)
    clockwork = Clockwork(monkeypatch, worker)
    claim = await pending(worker.claim())
    assert clockwork.timers == []
    client.queue.put("id", b"")
    await claim
    assert clockwork.rings == 1
    assert clockwork.timers == []


async def test_who_waits_for_an_outcome_is_rung_once(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start_queue(**WORKER)
    client = await start_queue()
    tickets = [client.queue.put(str(number), b"") for number in range(20)]
    clockwork = Clockwork(monkeypatch, client)
    waits = [await pending(client.wait(ticket)) for ticket in tickets]
    assert len(clockwork.timers) == 1, "one for all, should a ring be lost"
    for _ in tickets:
        lease = worker.queue.claim()
        assert lease is not None
        lease.start()
        lease.complete(b"")
    await soon(asyncio.gather(*waits))
    assert clockwork.rings == 1, "between two looks at the doorbell it is rung once"


async def test_who_waits_for_an_acknowledgement_is_told_of_it_and_of_each_end(
    start_queue: Start,
) -> None:
    worker, client = await start_queue(**WORKER), await start_queue()
    tickets = [await client.put("same id", b"") for _ in range(4)]
    waits = [await pending(client.acknowledged(ticket)) for ticket in tickets]
    leases = [await soon(worker.claim()) for _ in tickets]
    for lease in leases:
        lease.start()
    leases[0].ack()
    await soon(waits[0])  # not rung for; seen within a second
    assert not waits[1].done()
    leases[1].complete(b"result")
    await soon(waits[1])
    assert not waits[2].done()
    leases[2].finish(keep=False)
    await soon(waits[2])
    assert not waits[3].done()
    leases[3].finish(keep=True)
    await soon(waits[3])
    await soon(client.acknowledged(tickets[2]))  # its slot is free
    leases[0].complete(b"")


async def test_a_wait_has_an_end(start_queue: Start) -> None:
    client = await start_queue()
    await client.put("id", b"")
    with pytest.raises(TimeoutError):
        await client.wait("id", timeout=0.01)
    with pytest.raises(UnknownTask):
        await client.wait("unknown", timeout=0.01)


async def test_a_retry_under_the_same_id_is_waited_for(start_queue: Start) -> None:
    worker, client = await start_queue(**WORKER), await start_queue()
    ticket = await client.put("id", b"1")
    wait = await pending(client.wait(ticket))
    lease = await soon(worker.claim())
    lease.start()
    await worker.put("id", b"2")
    lease.finish(keep=True)
    again = await soon(worker.claim())
    assert (again.task_id, again.payload) == ("id", b"2")
    again.start()
    again.complete(b"second")
    assert (await soon(wait)).data == b"second"


async def test_a_retry_that_comes_later_is_waited_for(start_queue: Start) -> None:
    worker, client = await start_queue(**WORKER), await start_queue()
    ticket = await client.put("id", b"1")
    wait = await pending(client.wait(ticket))
    lease = await soon(worker.claim())
    lease.start()
    lease.finish(keep=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not wait.done(), "it ended without a result: it may come again"
    await worker.put("id", b"2")
    again = await soon(worker.claim())
    again.start()
    again.complete(b"second")
    assert (await soon(wait)).data == b"second"


async def test_a_claim_that_is_cancelled_passes_its_wake_on(start_queue: Start) -> None:
    client = await start_queue()
    first, second = await start_queue(**WORKER), await start_queue(**WORKER)
    claims = {worker: await pending(worker.claim()) for worker in (first, second)}
    await client.put("id", b"")
    # One of the two has been rung; before it can look, its claim is cancelled.
    [rung] = [worker for worker in claims if is_readable(worker.queue.fileno())]
    claims.pop(rung).cancel()
    [other] = claims.values()
    assert (await soon(other)).task_id == "id"


async def test_a_claim_that_is_cancelled_after_it_was_woken_passes_its_wake_on(
    start_queue: Start,
) -> None:
    client = await start_queue()
    first, second = await start_queue(**WORKER), await start_queue(**WORKER)
    claims = {worker: await pending(worker.claim()) for worker in (first, second)}
    client.queue.put("id", b"")
    [rung] = [worker for worker in claims if is_readable(worker.queue.fileno())]
    rung._on_bell()
    claims.pop(rung).cancel()
    [other] = claims.values()
    assert (await soon(other)).task_id == "id"


async def test_leaving_cancels_those_who_wait_and_gives_back(start_queue: Start) -> None:
    client = await start_queue()
    worker = await start_queue(**WORKER)
    ticket = await client.put("id", b"")
    await soon(worker.claim())
    claim = await pending(worker.claim())
    wait = await pending(worker.wait(ticket))
    await worker.close()
    for task in (claim, wait):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert client.queue.stats().ready == 1
    with pytest.raises(RuntimeError, match="closed"):
        await worker.claim()


async def test_a_worker_that_leaves_passes_its_wake_on(start_queue: Start) -> None:
    client = await start_queue()
    first, second = await start_queue(**WORKER), await start_queue(**WORKER)
    claims = {worker: await pending(worker.claim()) for worker in (first, second)}
    client.queue.put("id", b"")
    [rung] = [worker for worker in claims if is_readable(worker.queue.fileno())]
    del claims[rung]
    await rung.close()
    [other] = claims.values()
    assert (await soon(other)).task_id == "id"


async def test_a_put_into_a_full_queue_waits_for_room(start_queue: Start) -> None:
    client = await start_queue()
    for number in range(ROOM):
        await client.put(str(number), b"")
    with pytest.raises(
        QueueFull, match=r"'q' had no room for 0.01 s .*; 64 slots.; start more workers, or"
    ):
        await client.put("one more", b"", timeout=0.01)
    put = await pending(client.put("one more", b""))
    lease = client.queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=False)
    assert (await soon(put)).task_id == "one more"


async def test_messages_go_to_those_who_do_nothing_first(
    start_queue: Start, open_queue: Open, new_peer: NewPeer
) -> None:
    """Four workers of four free places each, four messages: one each."""
    client, witness = await start_queue(), open_queue()
    workers = joined(new_peer, 4, "role=Role.WORKER")
    for worker in workers:
        worker.ask(
            "taken = []\n"
            "async def work():\n"
            "    for _ in range(4):\n"
            "        lease = await waiting.claim()\n"
            "        lease.start()\n"
            "        taken.append(lease)\n"
            f"        queue.ring({witness.participant})\n"
            "working = asyncio.create_task(work())\n"
            "await asyncio.sleep(0)"
        )
    for number in range(4):
        await client.put(str(number), b"")
    await rung(witness, lambda: witness.stats().running == 4)
    assert [worker.ask("len(taken)") for worker in workers] == [1, 1, 1, 1]
    for number in range(8):
        await client.put(f"more {number}", b"")
    await rung(witness, lambda: witness.stats().running == 12)
    assert sum(worker.ask("len(taken)") for worker in workers) == 12


async def test_what_a_stopped_worker_was_rung_for_goes_to_another(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client = await start_queue()
    stopped, well = new_peer(), new_peer()
    for worker in (stopped, well):
        worker.join_async("role=Role.WORKER")
        worker.ask("claiming = asyncio.create_task(waiting.claim()); await asyncio.sleep(0)")
    stopped.stop()
    for number in range(2):  # one of the two rings the stopped one
        await client.put(str(number), b"")
    first = well.ask("lease = await claiming; lease.start(); lease.task_id")
    claimed = well.begin("lease = await waiting.claim(); lease.task_id")
    second = await asyncio.to_thread(well.answer, claimed)
    assert {first, second} == {"0", "1"}
    stopped.go_on()


async def test_a_producer_that_stands_still_keeps_nobody_from_work(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """It has taken the only sleeper's announcement and stops before it rings."""
    client, worker = await start_queue(), await start_queue(**WORKER)
    claim = await pending(worker.claim())
    producer = new_peer()
    producer.join()
    await settled()
    producer.begin(
        "queue.core.put(queue.participant, 'id', b'', 0, 0, 5, 0, False, 0, 0)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    await asyncio.to_thread(producer.wait_stopped)
    await client.put("another", b"")
    assert (await asyncio.wait_for(claim, 3 * SWEEP)).task_id == "id"
    producer.go_on()


async def test_one_who_waits_hears_of_ends_whoever_stands_still(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """A worker stops between ending a message and ringing: its news come late, others' do not."""
    client, worker = await start_queue(), await start_queue(**WORKER)
    stopped = new_peer()
    stopped.join("role=Role.WORKER")
    tickets = [await client.put(str(number), b"") for number in range(4)]
    waits = [await pending(client.wait(ticket)) for ticket in tickets]
    stopped.begin(
        "lease = queue.claim(); lease.start()\n"
        "woken = queue.core.complete(queue.participant, lease.slot, lease.word, b'', 0)\n"
        "[queue.core.disarm(index) for index in woken]\n"
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    await asyncio.to_thread(stopped.wait_stopped)
    assert (await soon(waits[0])).kind is OutcomeKind.RESULT, "the sweep finds it"
    loop = asyncio.get_running_loop()
    for wait in waits[1:]:
        lease = await soon(worker.claim())
        lease.start()
        began = loop.time()
        lease.complete(b"")
        await soon(wait)
        assert loop.time() - began < SWEEP / 2, "it was not rung, the sweep found it"
    stopped.go_on()


async def test_a_forgotten_wait_does_not_keep_its_outcome_for_ever(start_queue: Start) -> None:
    """Clients that gave up waiting must not fill the queue with outcomes that nobody will read."""
    client, worker = await start_queue(), await start_queue(**WORKER)
    for number in range(2 * SMALL.slots):
        ticket = await client.put(str(number), b"", timeout=1)
        with pytest.raises(TimeoutError):
            await client.wait(ticket, timeout=0)
        lease = await soon(worker.claim())
        lease.start()
        lease.complete(b"")


async def test_waiting_for_what_is_gone_keeps_nothing(start_queue: Start) -> None:
    """Who asks for an outcome that was forgotten must not mark the next message in its slot."""
    client, worker = await start_queue(), await start_queue(**WORKER)
    tickets = []
    for number in range(2 * SMALL.slots):
        tickets.append(await client.put(f"first {number}", b""))
        lease = await soon(worker.claim())
        lease.start()
        lease.complete(b"")
    for number, ticket in enumerate(tickets[: SMALL.slots]):
        with pytest.raises(UnknownTask):
            await client.wait(ticket)
        await client.put(f"second {number}", b"", timeout=1)
        lease = await soon(worker.claim())
        lease.start()
        lease.complete(b"")


async def test_while_a_retry_is_awaited_it_is_not_forgotten_that_there_was_a_task(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry may come later, and other tasks may need room until then."""
    monkeypatch.setattr("taskiq_supervise.ipc.waits.SWEEP", 0.001)
    worker, client = await start_queue(**WORKER), await start_queue()
    wait = await pending(client.wait(await client.put("id", b"1")))
    lease = await soon(worker.claim())
    lease.start()
    lease.finish(keep=True)
    for number in range(2 * SMALL.slots):
        await worker.put(str(number), b"")
        lease = await soon(worker.claim())
        lease.start()
        lease.complete(b"")
        client._waits._sweep()  # it looks again
        await settled()
        assert not wait.done()
    await worker.put("id", b"2")
    lease = await soon(worker.claim())
    lease.start()
    lease.complete(b"second")
    assert (await soon(wait)).data == b"second"


async def test_what_was_given_back_is_not_left_to_one_that_stands_still(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """An empty worker is preferred for it; should that one be stopped, others take it."""
    client, busy, stopped = await start_queue(), await start_queue(**WORKER), new_peer()
    for number in range(3):
        await client.put(str(number), b"")
    held = await soon(busy.claim())
    stopped.join_async("role=Role.WORKER")
    # It has taken two and is empty when it stops; then they are given back by somebody else.
    slots = stopped.ask(
        "leases = [queue.claim(), queue.claim()]\n"
        "queue._leases.clear()\n"
        "claiming = asyncio.create_task(waiting.claim()); await asyncio.sleep(0)\n"
        "queue.core.wake_up(queue.participant)\n"
        "[(lease.slot, lease.word) for lease in leases]"
    )
    stopped.stop()
    for slot, word in slots:
        client.queue.core.release(client.queue.participant, slot, word)
    for _ in slots:
        assert (await asyncio.wait_for(busy.claim(), 3 * SWEEP)).task_id in ("1", "2")
    assert held.held
    stopped.go_on()


async def test_many_processes_many_messages(start_queue: Start, new_peer: NewPeer) -> None:
    client = await start_queue()
    workers = joined(new_peer, 3, "role=Role.WORKER")
    for worker in workers:
        worker.ask(
            "async def work():\n"
            "    while True:\n"
            "        lease = await waiting.claim()\n"
            "        lease.start()\n"
            "        lease.complete(lease.payload[::-1])\n"
            "working = asyncio.create_task(work())\n"
            "None"
        )

    async def round_trip(number: int) -> None:
        payload = f"{number}-{'x' * (number % 700)}".encode()
        ticket = await client.put(str(number), payload)
        assert (await client.wait(ticket)).data == payload[::-1]

    for start in range(0, 600, 20):
        await soon(asyncio.gather(*(round_trip(number) for number in range(start, start + 20))))
    assert all(worker.pid != os.getpid() for worker in workers)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
