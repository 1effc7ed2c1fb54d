"""A full queue: who waits for room is called when there is some, in order, and polls nothing."""

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import run_one, settled
from tests.ipc.events import (
    HOUR,
    WORKER,
    Clockwork,
    NewPeer,
    Open,
    Start,
    eventually,
    pending,
    soon,
)
from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import AsyncTaskQueue, Geometry, QueueFull, TaskQueue, line

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

MARK = 2
"""Pieces of room from which on somebody is called, beside the one that is kept for workers."""
PATIENT = "import taskiq_supervise.ipc.line as line; line.LOOK_AGAIN = 3600.0"


@pytest.fixture(autouse=True)
def nobody_looks_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is called, or waits for ever."""
    monkeypatch.setattr(line, "LOOK_AGAIN", HOUR)


def fill(queue: TaskQueue) -> None:
    for number in range(ROOM):
        queue.put(f"first {number}", b"")


def is_there(queue: TaskQueue, task_id: str) -> bool:
    return queue.core.find(task_id.encode()) is not None


def waits(queue: TaskQueue, index: int) -> bool:
    return queue.core.is_waiting(index)


async def test_one_who_is_called_sets_no_timer_and_is_rung_once(
    start_queue: Start, open_queue: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_queue()  # has the offices
    await start_queue()
    client, worker = await start_queue(), open_queue(**WORKER)
    fill(client.queue)
    await settled()
    clockwork = Clockwork(monkeypatch, client)
    put = await pending(client.put("one more", b""))
    assert len(clockwork.timers) == 1, "one look again, should those who make room be stopped"
    for _ in range(10):
        run_one(worker)
    await put
    assert clockwork.rings == 1
    assert len(clockwork.timers) == 2, "and the one that sees whether somebody came for it"


async def test_of_many_who_wait_in_one_process_only_the_first_looks_again(
    start_queue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_queue()
    fill(client.queue)
    await settled()
    clockwork = Clockwork(monkeypatch, client)
    puts = [await pending(client.put(str(number), b"")) for number in range(20)]
    assert len(clockwork.timers) == 1
    for put in puts:
        put.cancel()


async def test_those_who_wait_in_one_process_come_in_their_order(
    start_queue: Start, open_queue: Open
) -> None:
    client, worker = await start_queue(), open_queue(**WORKER)
    fill(client.queue)
    puts = [await pending(client.put(str(number), b"")) for number in range(20)]
    for _ in range(ROOM):
        run_one(worker)
        await settled()
    await soon(asyncio.gather(*puts))
    assert [run_one(worker) for _ in range(20)] == [str(number) for number in range(20)]


def in_line(client: TaskQueue, peers: "list[Peer]", arguments: str = "") -> None:
    """Each waits for room, the first of them first. Their messages are called p0, p1, …"""
    fill(client)
    for number, peer in enumerate(peers):
        index = peer.join_async()
        peer.ask(PATIENT)
        peer.begin(f"putting = asyncio.ensure_future(waiting.put('p{number}', b'', {arguments}))")
        eventually(lambda index=index: waits(client, index))  # type: ignore[misc]


def test_processes_come_in_the_order_in_which_they_came(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, peers = open_queue(**WORKER), [new_peer() for _ in range(4)]
    in_line(worker, peers)
    for _ in range(MARK - 1):
        run_one(worker)
    for number in range(4):
        assert not is_there(worker, f"p{number}")
        run_one(worker)
        eventually(lambda number=number: is_there(worker, f"p{number}"))  # type: ignore[misc]


@pytest.mark.parametrize("fate", ["killed", "stopped", "cancelled", "timed out"])
def test_one_who_does_not_come_keeps_nobody_back(
    open_queue: Open, new_peer: NewPeer, fate: str
) -> None:
    worker, peers = open_queue(**WORKER), [new_peer() for _ in range(4)]
    in_line(worker, peers, "timeout=0.2" if fate == "timed out" else "")
    if fate == "killed":
        peers[0].kill()
    elif fate == "stopped":
        peers[0].stop()
    elif fate == "cancelled":
        peers[0].ask("putting.cancel(); await asyncio.sleep(0)")
    if fate == "timed out":
        for peer in peers:
            assert "had no room for 0.2 s" in peer.ask(
                "await asyncio.wait([putting])\nstr(putting.exception())"
            )
        for number, peer in enumerate(peers):
            peer.begin(f"await waiting.put('p{number}', b'')")
            eventually(lambda: any(waits(worker, one.index) for one in worker.participants()))
    lost_calls = 1
    for _ in range(MARK + lost_calls + len(peers)):
        run_one(worker)
    for number in range(1, 4):
        eventually(lambda number=number: is_there(worker, f"p{number}"))  # type: ignore[misc]
    if fate == "stopped":
        peers[0].go_on()
        assert peers[0].ask("(await putting).task_id") == "p0"


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_one_who_is_called_and_goes_away_passes_the_call_on(
    start_queue: Start, open_queue: Open, how: str
) -> None:
    first, second, worker = await start_queue(), await start_queue(), open_queue(**WORKER)
    fill(worker)
    put = await pending(first.put("of the first", b""))
    other = await pending(second.put("of the second", b""))
    for _ in range(MARK):
        run_one(worker)
    assert not waits(worker, first.queue.participant), "it is called"
    if how == "cancelled":
        put.cancel()
    else:
        await first.close()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert (await soon(other)).task_id == "of the second"


async def test_a_full_queue_does_not_wake_a_producer_for_every_message(
    start_queue: Start, open_queue: Open
) -> None:
    """They are called from a low-water mark on; or when there is nothing left to be done."""
    client, worker = await start_queue(), open_queue(**WORKER)
    fill(client.queue)
    put = await pending(client.put("one more", b""))
    for _ in range(MARK - 1):
        lease = worker.claim()
        assert lease is not None
        lease.start()
        lease.finish(keep=False)
        await settled()
        assert not put.done()
    run_one(worker)
    await soon(put)


async def test_the_last_message_calls_whatever_the_mark(start_queue: Start) -> None:
    client = await start_queue()
    fill(client.queue)
    leases = client.queue.claim_many(ROOM)
    put = await pending(client.put("one more", b""))
    leases[0].finish(keep=False)  # there is nothing that could still be claimed
    await soon(put)


async def awaited_outcomes(client: AsyncTaskQueue, worker: TaskQueue) -> "list[str]":
    """A queue full of outcomes that somebody waits for and has not read."""
    for number in range(ROOM):
        ticket = client.queue.put(str(number), b"")
        client.queue.core.watch(client.queue.participant, ticket.slot)
        run_one(worker)
    with pytest.raises(QueueFull):
        client.queue.put("no room", b"")
    return [str(number) for number in range(ROOM)]


@pytest.mark.parametrize("how", ["read", "dropped", "old"])
async def test_outcomes_that_go_make_room(start_queue: Start, open_queue: Open, how: str) -> None:
    client, reader, worker = await start_queue(), open_queue(), open_queue(**WORKER)
    await awaited_outcomes(client, worker)
    put = await pending(client.put("one more", b""))
    if how == "read":
        assert reader.outcome("7") is not None
    elif how == "dropped":
        reader.drop(reader.find("7"))
    else:
        reader.result_ttl = 0.05
    await soon(put)


async def test_a_message_that_is_discarded_makes_room(start_queue: Start, open_queue: Open) -> None:
    client, other = await start_queue(), open_queue()
    fill(other)
    put = await pending(client.put("one more", b""))
    for number in range(MARK):
        assert other.discard(other.find(f"first {number}"))
    await soon(put)


async def test_what_a_worker_sends_again_comes_in_while_clients_wait(start_queue: Start) -> None:
    client, worker = await start_queue(), await start_queue(**WORKER)
    fill(client.queue)
    put = await pending(client.put("of a client", b""))
    assert (await worker.put("again", b"")).task_id == "again"
    assert not put.done()
    wait = await pending(worker.put("again, too", b""))
    for task in (put, wait):
        task.cancel()


@pytest.mark.parametrize("timeout", [0, 0.02])
async def test_who_does_not_want_to_wait_is_told(start_queue: Start, timeout: float) -> None:
    client = await start_queue()
    fill(client.queue)
    began = time.monotonic()
    with pytest.raises(QueueFull, match=f"'q' had no room for {timeout} s .*64 slots"):
        await client.put("id", b"", timeout=timeout)
    assert timeout <= time.monotonic() - began < 5
    assert not waits(client.queue, client.queue.participant)
    assert not is_there(client.queue, "id")


async def test_a_result_waits_for_room_too(start_queue: Start) -> None:
    few_blocks = Geometry(slots=64, inline_size=256, participants=64, blocks=((1024, 2),))
    client = await start_queue(geometry=few_blocks)
    worker = await start_queue(**WORKER)
    waiters = [await pending(client.wait(client.queue.put(str(n), b""))) for n in range(3)]
    leases = [await soon(worker.claim()) for _ in waiters]
    for lease in leases:
        lease.start()
    reader = client.queue.fileno()
    asyncio.get_running_loop().remove_reader(reader)  # it is slow to read its results
    for lease in leases[:2]:
        await worker.complete(lease, bytes(900))
    with pytest.raises(QueueFull):
        await worker.complete(leases[2], bytes(900), timeout=0.01)
    assert leases[2].held
    completed = await pending(worker.complete(leases[2], bytes(900)))
    asyncio.get_running_loop().add_reader(reader, client._on_bell)
    await soon(completed)
    for waiter in waiters:
        assert (await soon(waiter)).data == bytes(900)


def test_one_in_line_gets_in_beside_a_producer_that_never_pauses(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, greedy, modest = open_queue(**WORKER), new_peer(), new_peer()
    fill(worker)
    greedy.join_async()
    modest.join_async()
    greedy.begin(
        "going = True\n"
        "async def put():\n"
        "    number = 0\n"
        "    while going:\n"
        "        number += 1\n"
        "        await waiting.put(str(number), b'')\n"
        "        await asyncio.sleep(0)\n"
        "putting = asyncio.ensure_future(put())"
    )
    asked = modest.begin("for n in range(20): await waiting.put(f'modest {n}', b'', timeout=30)")
    seen = 0

    def run_what_is_there() -> bool:
        nonlocal seen
        lease = worker.claim()
        if lease is not None:
            lease.start()
            lease.finish(keep=False)
            seen += lease.task_id.startswith("modest")
        return seen == 20

    eventually(run_what_is_there, "it starved")
    modest.answer(asked)
    greedy.ask("going = False")


def test_several_who_fill_it_and_empty_it_lose_nothing(open_queue: Open, new_peer: NewPeer) -> None:
    witness, peers = open_queue(), [new_peer() for _ in range(4)]
    for peer in peers:
        peer.join_async("role=Role.WORKER" if peer in peers[:2] else "")
    total = 3 * SMALL.slots
    working = [
        peer.begin(
            "done = []\n"
            "async def work():\n"
            "    while True:\n"
            "        lease = await waiting.claim()\n"
            "        lease.start(); lease.complete(b''); done.append(lease.task_id)\n"
            "working = asyncio.ensure_future(work())\nNone"
        )
        for peer in peers[:2]
    ]
    for peer, number in zip(peers, working, strict=False):
        peer.answer(number)
    putting = [
        (peer, peer.begin(
            "await asyncio.gather(*("
            f"waiting.put(f'{number}-{{n}}', b'', timeout=30) for n in range({total})))\nNone"
        ))
        for number, peer in enumerate(peers[2:])
    ]  # fmt: skip
    for peer, number in putting:
        peer.answer(number)
    eventually(lambda: witness.stats().ready + witness.stats().running == 0)
    eventually(lambda: sum(peer.ask("len(done)") for peer in peers[:2]) == 2 * total)
    done = [task_id for peer in peers[:2] for task_id in peer.ask("done")]
    assert sorted(done) == sorted(f"{p}-{n}" for p in range(2) for n in range(total))
