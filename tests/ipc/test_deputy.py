"""The offices: whoever is killed or stands still, somebody repairs and looks after what is due."""

import time
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import wait_until
from tests.ipc.events import (
    WORKER,
    NewPeer,
    Open,
    Start,
    claimed_when_there,
    eventually,
    joined,
    soon,
)

from taskiq_supervise.ipc import DeathCause, OutcomeKind, TaskQueue

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

HOLD = "lease = queue.claim(); lease.start(); lease.task_id"


def candidates(new_peer: NewPeer, count: int) -> "list[Peer]":
    """The first is the custodian, the second its deputy, the others are nothing."""
    peers = joined(new_peer, count)
    ranks = [peer.ask("waiting.custodian.rank.value") for peer in peers]
    assert ranks == ["custodian", "deputy", "none", "none"][:count]
    return peers


def office(peers: "list[Peer]", rank: str) -> "Peer":
    """Who of them has it, once somebody does."""
    found: list[Peer] = []

    def look() -> bool:
        found[:] = [one for one in peers if one.ask("waiting.custodian.rank.value") == rank]
        return len(found) == 1

    eventually(look, f"nobody became {rank}")
    return found[0]


def redelivered(client: TaskQueue, worker: "Peer") -> None:
    """What the worker held comes back after its death."""
    worker.join("role=Role.WORKER")
    client.put("id", b"")
    assert worker.ask(HOLD) == "id"
    worker.kill()
    lease = claimed_when_there(client)
    assert (lease.task_id, lease.attempt) == ("id", 1)
    lease.start()
    lease.finish(keep=False)


def test_deaths_are_repaired_while_the_custodian_stands_still(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 2)
    peers[0].stop()
    redelivered(client, new_peer())
    peers[0].go_on()
    redelivered(client, new_peer())
    assert peers[0].ask("waiting.custodian.rank.value") == "custodian"
    assert peers[1].ask("waiting.custodian.rank.value") == "deputy"


def test_a_custodian_that_goes_on_repairs_nothing_twice(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, worker, peers = open_queue(**WORKER), new_peer(), candidates(new_peer, 2)
    index = worker.join("role=Role.WORKER")
    client.put("id", b"")
    assert worker.ask(HOLD) == "id"
    peers[0].stop()
    worker.kill()
    lease = claimed_when_there(client)
    lease.start()
    newcomer = new_peer()
    assert newcomer.join("role=Role.WORKER") == index, "in the dead one's place"
    client.put("of the newcomer", b"")
    assert newcomer.ask(HOLD) == "of the newcomer"
    peers[0].go_on()
    assert peers[0].ask("waiting.custodian.active") is True
    assert client.stats().running == 2
    assert newcomer.ask("lease.complete(b'result')") is None
    lease.complete(b"")


def test_a_dead_deputy_is_replaced(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 4)
    for _ in range(2):
        deputy = office(peers[1:], "deputy")
        deputy.kill()
        peers.remove(deputy)
        deputy = office(peers[1:], "deputy")
        assert client.core.deputy == deputy.ask("queue.participant")
    peers[0].stop()
    redelivered(client, new_peer())
    peers[0].go_on()


def test_a_deputy_moves_up_and_another_takes_its_place(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 4)
    peers.pop(0).kill()
    custodian = office(peers, "custodian")
    office(peers, "deputy")
    custodian.stop()
    rest = [peer for peer in peers if peer is not custodian]
    redelivered(client, new_peer())
    office(rest, "deputy")
    custodian.go_on()


def test_both_killed_at_once_are_replaced(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 4)
    for peer in peers[:2]:
        peer.stop()
    for peer in peers[:2]:
        peer.kill()
    redelivered(client, new_peer())
    custodian, deputy = office(peers[2:], "custodian"), office(peers[2:], "deputy")
    assert custodian is not deputy
    eventually(lambda: len(list(client.participants())) == 3)


def test_custodian_deputy_and_worker_killed_at_once(open_queue: Open, new_peer: NewPeer) -> None:
    client, worker, peers = open_queue(**WORKER), new_peer(), candidates(new_peer, 3)
    worker.join("role=Role.WORKER")
    due = time.time() + 0.1
    client.put("delayed", b"", due=due)
    client.put("id", b"")
    assert worker.ask(HOLD) == "id"
    dying = [worker, *peers[:2]]
    for peer in dying:
        peer.stop()
    for peer in dying:
        peer.kill()
    first, second = claimed_when_there(client), claimed_when_there(client)
    assert {first.task_id, second.task_id} == {"id", "delayed"}
    assert time.time() >= due


def test_one_who_leaves_its_office_is_replaced(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 4)
    for rank in ("deputy", "custodian"):
        leaving = office(peers, rank)
        leaving.ask("await waiting.close()")
        peers.remove(leaving)
        office(peers, "custodian")
    office(peers, "deputy")
    redelivered(client, new_peer())


def test_a_deputy_that_stands_still_keeps_nobody_back(open_queue: Open, new_peer: NewPeer) -> None:
    client, peers = open_queue(**WORKER), candidates(new_peer, 3)
    peers[1].stop()
    redelivered(client, new_peer())
    client.put("delayed", b"", due=time.time() + 0.02)
    assert claimed_when_there(client).task_id == "delayed"
    peers[1].go_on()


def test_a_guardian_that_stands_still_is_stood_in_for(open_queue: Open, new_peer: NewPeer) -> None:
    """The supervisor would say which signal it was; after a while nobody waits for that."""
    client, guardian, deputy, worker = open_queue(), new_peer(), new_peer(), new_peer()
    index = guardian.join("role=Role.SUPERVISOR")
    guardian.ask(
        "queue.become_supervisor('s'); waiting = AsyncTaskQueue(queue); await waiting.start()"
    )
    deputy.join_async()
    worker.join(f"role=Role.WORKER, guardian={index}")
    client.put("id", b"")
    assert worker.ask(HOLD) == "id"
    guardian.stop()
    worker.kill()
    wait_until(client, lambda: client.stats().ready == 1)
    guardian.go_on()
    dead = worker.pid
    assert guardian.ask(f"queue.bury({dead}, DeathCause(pid={dead}, signal=9)).redelivered") == []


async def test_a_living_guardian_is_waited_for_by_both(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """Its word about the cause comes first, though custodian and deputy see the death too."""
    client, other = await start_queue(), await start_queue()
    assert client.custodian.active
    assert other.custodian.rank.value == "deputy"
    guardian, worker = new_peer(), new_peer()
    index = guardian.join("role=Role.SUPERVISOR")
    worker.join(f"role=Role.WORKER, guardian={index}")
    ticket = await client.put("id", b"", max_deliveries=1)
    worker.ask(HOLD)
    worker.kill()
    with pytest.raises(TimeoutError):
        await client.wait(ticket, timeout=0.5)
    guardian.ask(f"queue.bury({worker.pid}, DeathCause(pid={worker.pid}, signal=11)).dead")
    outcome = await soon(client.wait(ticket))
    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.cause == DeathCause(pid=worker.pid, signal=11)
