"""Deaths, and what becomes of what the dead held. All who die here are processes of their own."""

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import PATIENCE, is_readable, run_one, rung, settled, wait_until
from tests.ipc.events import NewPeer, Open, Start, joined
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    AsyncTaskQueue,
    DeadReason,
    DeathCause,
    OutcomeKind,
    QueueError,
    Role,
    TaskQueue,
)

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

HOLD = "lease = queue.claim(); lease.start(); lease.task_id"


async def claimed(waiting: AsyncTaskQueue) -> str:
    lease = await asyncio.wait_for(waiting.claim(), PATIENCE)
    lease.release()
    return lease.task_id


async def test_a_killed_worker_gives_its_task_back(start_queue: Start, new_peer: NewPeer) -> None:
    """Without any supervisor: a client that happens to be there sees to it."""
    client, worker = await start_queue(), new_peer()
    worker.join("role=Role.WORKER")
    await client.put("id", b"payload" * 50)
    assert worker.ask(HOLD) == "id"
    claim = asyncio.ensure_future(client.claim())
    await asyncio.sleep(0)
    worker.kill()
    lease = await asyncio.wait_for(claim, PATIENCE)
    assert (lease.task_id, lease.payload, lease.attempt) == ("id", b"payload" * 50, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_task_that_kills_every_worker_is_started_three_times(
    start_queue: Start, new_peer: NewPeer, number: int
) -> None:
    supervisor = await start_queue(role=Role.SUPERVISOR)
    supervisor.queue.become_supervisor("test")
    ticket = await supervisor.put("id", b"")
    wait = asyncio.ensure_future(supervisor.wait(ticket))
    causes = []
    for start in range(1, 4):
        worker = new_peer()
        worker.join(f"role=Role.WORKER, guardian={supervisor.queue.participant}, tag=3")
        worker.ask("lease = queue.claim(); lease.start()")
        worker.kill(number)
        causes.append(DeathCause(pid=worker.pid, worker=2, signal=number))
        burial = supervisor.queue.bury(worker.pid, causes[-1])
        assert burial.redelivered == (("id",) if start < 3 else ())
        assert burial.dead == (("id",) if start == 3 else ())
    outcome = await asyncio.wait_for(wait, PATIENCE)
    assert (outcome.kind, outcome.dead_reason, outcome.attempts) == (
        OutcomeKind.DEAD,
        DeadReason.MAX_DELIVERIES,
        3,
    )
    assert outcome.cause == causes[-1]
    assert outcome.detail == f"its worker killed by {signal.Signals(number).name}"


async def test_the_number_of_starts_can_be_said_per_message(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client = await start_queue()
    ticket = await client.put("id", b"", max_deliveries=1)
    worker = new_peer()
    worker.join()
    worker.ask(HOLD)
    wait = asyncio.ensure_future(client.wait(ticket))
    worker.kill()
    assert (await asyncio.wait_for(wait, PATIENCE)).kind is OutcomeKind.DEAD


async def test_a_message_that_was_only_claimed_is_not_counted(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client = await start_queue()
    await client.put("id", b"")
    for _ in range(4):
        worker = new_peer()
        worker.join()
        assert worker.ask("queue.claim().attempt") == 0
        claim = asyncio.ensure_future(claimed(client))
        await asyncio.sleep(0)
        worker.kill()
        assert await claim == "id"


async def test_what_was_acknowledged_is_lost_and_not_run_again(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client, worker = await start_queue(), new_peer()
    worker.join()
    ticket = await client.put("id", b"")
    worker.ask("lease = queue.claim(); lease.start(); lease.ack()")
    wait = asyncio.ensure_future(client.wait(ticket))
    worker.kill()
    outcome = await asyncio.wait_for(wait, PATIENCE)
    assert outcome.kind is OutcomeKind.WORKER_LOST
    assert outcome.cause is not None
    assert outcome.cause.pid == worker.pid
    assert client.queue.claim() is None


def holders(client: TaskQueue, *peers: "Peer") -> "Peer":
    """Which of them is the custodian: the office is taken in the background."""
    by_index = {peer.ask("queue.participant"): peer for peer in peers}
    wait_until(client, lambda: client.core.custodian in by_index)
    return by_index[client.core.custodian]


def test_a_killed_custodian_is_replaced(open_queue: Open, new_peer: NewPeer) -> None:
    client, worker, peers = open_queue(), new_peer(), joined(new_peer, 3)
    worker.join("role=Role.WORKER")
    for _ in range(2):
        custodian = holders(client, *peers)
        peers.remove(custodian)
        custodian.kill()
        holders(client, *peers)
    client.put("id", b"")
    worker.ask(HOLD)
    worker.kill()
    wait_until(client, lambda: client.stats().ready == 1)


def test_custodian_and_worker_killed_at_once(open_queue: Open, new_peer: NewPeer) -> None:
    client, worker, peers = open_queue(), new_peer(), joined(new_peer, 2)
    worker.join("role=Role.WORKER")
    client.put("id", b"")
    worker.ask(HOLD)
    custodian = holders(client, *peers)
    custodian.stop()
    worker.kill()
    custodian.kill()
    wait_until(client, lambda: client.stats().ready == 1)


def test_a_supervisor_takes_the_office_over(open_queue: Open, new_peer: NewPeer) -> None:
    client, peer, supervisor = open_queue(), new_peer(), new_peer()
    index = peer.join_async()
    wait_until(client, lambda: client.core.custodian == index)
    office = supervisor.join("role=Role.SUPERVISOR")
    supervisor.ask(
        "queue.become_supervisor('s'); waiting = AsyncTaskQueue(queue); await waiting.start()"
    )
    wait_until(client, lambda: client.core.custodian == office)
    assert peer.ask("waiting.custodian.active") is False
    supervisor.kill()
    wait_until(client, lambda: client.core.custodian == index)
    assert client.core.supervisor == 0


async def test_an_office_that_is_handed_to_one_who_has_just_died_is_kept(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client, supervisor = await start_queue(), new_peer()
    supervisor.join("role=Role.SUPERVISOR")
    await client.put("id", b"")
    supervisor.ask(HOLD)
    await settled()
    assert client.custodian.active
    supervisor.ask("queue.become_supervisor('s')")
    supervisor.kill()
    client.custodian.refresh()  # a ring that comes before the news of the death
    assert await claimed(client) == "id"


async def test_a_worker_with_a_living_guardian_is_left_to_it(
    start_queue: Start, new_peer: NewPeer
) -> None:
    """Only the parent can tell which signal it was."""
    client, guardian, worker = await start_queue(), new_peer(), new_peer()
    index = guardian.join("role=Role.SUPERVISOR")
    worker.join(f"role=Role.WORKER, guardian={index}, tag=1")
    ticket = await client.put("id", b"", max_deliveries=1)
    worker.ask(HOLD)
    worker.kill()
    with pytest.raises(TimeoutError):
        await client.wait(ticket, timeout=0.1)
    assert client.queue.stats().running == 1
    wait = asyncio.ensure_future(client.wait(ticket))
    await asyncio.sleep(0)
    guardian.ask(
        f"queue.bury({worker.pid}, DeathCause(pid={worker.pid}, worker=0, signal=11)).dead"
    )
    outcome = await asyncio.wait_for(wait, PATIENCE)
    assert outcome.detail == "its worker killed by SIGSEGV"


async def test_when_the_guardian_is_dead_others_see_to_its_workers(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client, guardian, worker = await start_queue(), new_peer(), new_peer()
    index = guardian.join("role=Role.SUPERVISOR")
    worker.join(f"role=Role.WORKER, guardian={index}")
    await client.put("id", b"")
    worker.ask(HOLD)
    worker.kill()
    guardian.kill()
    assert await claimed(client) == "id"


async def test_a_newcomer_in_the_guardians_place_is_not_the_guardian(
    start_queue: Start, open_queue: Open, new_peer: NewPeer
) -> None:
    """A supervisor dies, the next one gets its index, and then an old worker dies."""
    client, witness = await start_queue(), open_queue()
    guardian, worker = new_peer(), new_peer()
    index = guardian.join("role=Role.SUPERVISOR")
    worker.join(f"role=Role.WORKER, guardian={index}")
    await client.put("id", b"")
    worker.ask(HOLD)
    guardian.kill()
    await rung(witness, lambda: not witness.core.participant(index)[0])
    newcomer = open_queue(role=Role.SUPERVISOR)
    assert newcomer.participant == index
    worker.kill()
    assert await claimed(client) == "id"


def test_a_death_that_was_planned_costs_no_attempt(open_queue: Open, new_peer: NewPeer) -> None:
    supervisor, worker = open_queue(role=Role.SUPERVISOR), new_peer()
    worker.join(f"role=Role.WORKER, guardian={supervisor.participant}")
    supervisor.put("id", b"", max_deliveries=1)
    worker.ask(HOLD)
    supervisor.explain(worker.pid)
    worker.kill()
    assert supervisor.bury(worker.pid, DeathCause(signal=9)).redelivered == ("id",)
    lease = supervisor.claim()
    assert lease is not None
    assert lease.attempt == 0


def test_the_living_are_not_buried(open_queue: Open, new_peer: NewPeer) -> None:
    supervisor, worker = open_queue(role=Role.SUPERVISOR), new_peer()
    index = worker.join(f"role=Role.WORKER, guardian={supervisor.participant}")
    supervisor.put("id", b"")
    worker.ask(HOLD)
    worker.stop()
    assert supervisor.recover(index) is None
    assert supervisor.bury(worker.pid, DeathCause(signal=9)).redelivered == ()
    assert supervisor.recover(supervisor.participant) is None
    worker.go_on()
    worker.ask("lease.complete(b'it lived')")
    outcome = supervisor.outcome("id")
    assert outcome is not None
    assert outcome.data == b"it lived"


def test_everybody_killed_and_the_messages_are_still_there(
    open_queue: Open, new_peer: NewPeer
) -> None:
    supervisor, workers = new_peer(), [new_peer() for _ in range(3)]
    index = supervisor.join_async("role=Role.SUPERVISOR")
    for worker in workers:
        worker.join(f"role=Role.WORKER, guardian={index}")
    supervisor.ask("[queue.put(str(n), b'x' * n * 25) and None for n in range(20)]")
    assert {worker.ask(HOLD) for worker in workers} == {"0", "1", "2"}
    for process in (supervisor, *workers):
        process.stop()
    for process in (supervisor, *workers):
        process.kill()
    client, custodian = open_queue(), new_peer()
    assert client.stats().ready == 17
    custodian.join_async()
    wait_until(client, lambda: client.stats().ready == 20)
    assert sorted(int(run_one(client)) for _ in range(20)) == list(range(20))
    assert len(list(client.participants())) == 2


def test_the_index_of_a_dead_one_is_repaired_by_who_takes_it(
    new_peer: NewPeer, open_queue: Open
) -> None:
    """All places are taken, one of them by a dead one that nobody has repaired."""
    dead, client = new_peer(), open_queue()
    index = dead.join("role=Role.WORKER")
    for _ in range(SMALL.participants - 3):
        open_queue()
    client.put("id", b"")
    dead.ask(HOLD)
    with pytest.raises(QueueError, match="all alive"):
        open_queue()
    client.core.sleep(client.participant, True)
    dead.kill()
    assert not is_readable(client.fileno())
    assert open_queue().participant == index
    assert is_readable(client.fileno()), "who waits for work is woken"
    assert run_one(client) == "id"


async def test_the_doorbell_of_a_dead_one_is_removed(
    start_queue: Start, open_queue: Open, new_peer: NewPeer
) -> None:
    client, witness, peer = await start_queue(), open_queue(), new_peer()
    index = peer.join()
    bell = client.queue.directory / f"bell-{index}"
    assert bell.exists()
    peer.kill()
    await rung(witness, lambda: not witness.core.participant(index)[0])
    assert not bell.exists()


def test_a_ring_that_cannot_be_rung_is_said_and_costs_no_message(
    open_queue: Open, new_peer: NewPeer
) -> None:
    worker, client = open_queue(role=Role.WORKER), new_peer()
    client.join()
    worker.core.sleep(worker.participant, True)
    said = client.ask(
        "import io, logging, resource\n"
        "logging.basicConfig(stream=(log := io.StringIO()))\n"
        "used = max(map(int, os.listdir('/proc/self/fd')))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))\n"
        "queue.put('id', b'').slot\n"
        "log.getvalue()"
    )
    assert f"cannot ring participant {worker.participant}" in said
    assert "Too many open files" in said
    assert run_one(worker) == "id"


async def test_what_outlived_its_time_is_forgotten_by_the_audit(
    start_queue: Start, new_peer: NewPeer
) -> None:
    client = await start_queue()
    ticket = await client.put("id", b"")
    run_one(client.queue)
    core = client.queue.core
    assert core.audit(client.queue.participant, 2**63, 10**9) == (1, 0)
    with pytest.raises(QueueError, match="never sent, or its result has expired"):
        client.queue.outcome(ticket)
