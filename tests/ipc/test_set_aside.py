"""A worker that stands still is left no work, and is called when it goes on.

The workers here have no event loop and nobody holds an office, so nothing helps but what is tested:
no timer passes a wake on, no audit rings.
"""

import random
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import is_readable, wait_until
from tests.ipc.events import NewPeer, Open, eventually

from taskiq_supervise.ipc import Role, TaskQueue

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


TAKE = """
import select
def take():
    while (lease := queue.claim_or_sleep()) is None:
        select.select([queue], [], [])
        queue.answer_bell()
    lease.start()
    return lease
"""


@pytest.fixture
def supervisor(open_queue: Open) -> TaskQueue:
    return open_queue(role=Role.SUPERVISOR)


def worker_of(supervisor: TaskQueue, new_peer: NewPeer, *, busy: bool = False) -> "Peer":
    """Asleep; busy: it holds a message, so that those who hold none are rung before it."""
    worker = new_peer()
    worker.join(f"role=Role.WORKER, guardian={supervisor.participant}")
    worker.ask(TAKE)
    if busy:
        supervisor.put("held", b"")
        worker.ask("held = take()\nNone")
    assert worker.ask("queue.claim_or_sleep() is None")
    return worker


def empty_workers(supervisor: TaskQueue) -> int:
    return supervisor.core.empty_others(supervisor.participant)


def test_what_it_was_rung_for_goes_to_another(supervisor: TaskQueue, new_peer: NewPeer) -> None:
    busy = worker_of(supervisor, new_peer, busy=True)
    stopped = worker_of(supervisor, new_peer)
    stopped.stop()
    supervisor.put("id", b"")
    taking = busy.begin("select.select([queue], [], []); take().task_id")
    assert supervisor.stats().ready == 1, "nobody else was rung"
    supervisor.set_aside(stopped.pid)
    assert busy.answer(taking) == "id"
    stopped.go_on()


def test_nothing_more_is_left_to_it(supervisor: TaskQueue, new_peer: NewPeer) -> None:
    stopped = worker_of(supervisor, new_peer)
    stopped.stop()
    assert empty_workers(supervisor) == 1
    supervisor.set_aside(stopped.pid)
    assert empty_workers(supervisor) == 0, "those who run something would leave messages to it"
    busy = worker_of(supervisor, new_peer)
    supervisor.put("one", b"")
    assert busy.ask("select.select([queue], [], []); take().task_id") == "one"
    assert supervisor.core.pick_sleeper(supervisor.participant, False) == 0
    stopped.go_on()


def test_where_there_is_no_work_nobody_is_rung(supervisor: TaskQueue, new_peer: NewPeer) -> None:
    stopped, well = worker_of(supervisor, new_peer), worker_of(supervisor, new_peer)
    stopped.stop()
    supervisor.set_aside(stopped.pid)
    assert not well.ask("bool(select.select([queue], [], [], 0)[0])")
    stopped.go_on()
    assert not stopped.ask("bool(select.select([queue], [], [], 0)[0])")


def test_what_it_runs_stays_with_it(supervisor: TaskQueue, new_peer: NewPeer) -> None:
    worker = worker_of(supervisor, new_peer, busy=True)
    worker.stop()
    supervisor.set_aside(worker.pid)
    assert supervisor.claim() is None
    worker.go_on()
    assert worker.ask("held.complete(b'its own')") is None
    outcome = supervisor.outcome("held")
    assert outcome is not None
    assert outcome.data == b"its own"


def test_one_that_goes_on_is_called_and_looks_for_work(
    supervisor: TaskQueue, new_peer: NewPeer
) -> None:
    worker = worker_of(supervisor, new_peer)
    taking = worker.begin("select.select([queue], [], []); take().task_id")
    worker.stop()
    supervisor.set_aside(worker.pid)
    worker.go_on()
    supervisor.put("meanwhile", b"")
    assert supervisor.stats().ready == 1
    supervisor.call_back(worker.pid)
    assert worker.answer(taking) == "meanwhile"


def test_one_that_was_called_and_finds_nothing_marks_itself(
    supervisor: TaskQueue, new_peer: NewPeer
) -> None:
    worker = worker_of(supervisor, new_peer)
    worker.stop()
    supervisor.set_aside(worker.pid)
    worker.go_on()
    supervisor.call_back(worker.pid)
    taking = worker.begin("select.select([queue], [], []); take().task_id")
    eventually(lambda: empty_workers(supervisor) == 1, "it does not mark itself")
    supervisor.put("later", b"")
    assert worker.answer(taking) == "later"


def test_workers_of_others_are_left_alone(
    supervisor: TaskQueue, open_queue: Open, new_peer: NewPeer
) -> None:
    worker, stranger = worker_of(supervisor, new_peer), open_queue()
    stranger.set_aside(worker.pid)
    stranger.call_back(worker.pid)
    assert empty_workers(supervisor) == 1
    assert not is_readable(supervisor.fileno())
    assert not worker.ask("bool(select.select([queue], [], [], 0)[0])")


@pytest.mark.parametrize("stops", [True, False])
def test_whenever_it_happens_no_message_waits_for_one_that_stands_still(
    supervisor: TaskQueue, new_peer: NewPeer, stops: bool
) -> None:
    """Under load, at random moments. stops False: it was a false alarm, the worker works on."""
    workers = [worker_of(supervisor, new_peer) for _ in range(2)]
    for worker in workers:
        worker.begin(
            f"while True:\n    take().complete(b'')\n    queue.ring({supervisor.participant})"
        )
    dice, sent = random.Random(7), 0
    for _ in range(60):
        victim = dice.choice(workers)
        for number in range(dice.randrange(1, 4)):
            if number == 1:
                sleep_a_little(dice)
            supervisor.put(str(sent), b"")
            sent += 1
        sleep_a_little(dice)
        if stops:
            victim.stop()
        supervisor.set_aside(victim.pid)
        if stops:
            # What it holds is all that is left.
            wait_until(supervisor, lambda: nothing_waits(supervisor, held=1))
            victim.go_on()
        supervisor.call_back(victim.pid)
        wait_until(supervisor, lambda: nothing_waits(supervisor, held=0))


def test_one_that_was_about_to_ring_another_keeps_nobody_from_work(
    supervisor: TaskQueue, new_peer: NewPeer
) -> None:
    """It has taken the other's announcement and stands still before it rings."""
    well, stopped = worker_of(supervisor, new_peer), worker_of(supervisor, new_peer)
    supervisor.core.wake_up(stopped.ask("queue.participant"))
    assert stopped.ask("queue.core.pick_sleeper(queue.participant, False)") == well.ask(
        "queue.participant"
    )
    stopped.stop()
    supervisor.put("id", b"")
    taking = well.begin("select.select([queue], [], []); take().task_id")
    supervisor.set_aside(stopped.pid)
    assert well.answer(taking) == "id"
    stopped.go_on()


def nothing_waits(queue: TaskQueue, *, held: int) -> bool:
    stats = queue.stats()
    return stats.ready == 0 and stats.leased + stats.running <= held


def sleep_a_little(dice: random.Random) -> None:
    """So that the others are somewhere else each time: a wake takes some 25 µs."""
    for _ in range(dice.randrange(2000)):
        pass
