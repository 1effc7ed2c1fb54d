"""Priorities: higher lanes first, and none that starves."""

from collections import Counter

import pytest
from tests.ipc.events import NewPeer, Open
from tests.ipc.peer import ROOM

from taskiq_supervise.ipc import DEFAULT_PRIORITY, QueueError, Role, TaskQueue

LANES = range(10)
TURNS = 80
"""Of so many claims each lane in use gets at least one."""
CREDIT = 8
"""One claim of so many does not begin at the highest lane."""


def next_lane(queue: TaskQueue) -> int:
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.finish(keep=False)
    return int(lease.task_id.split("-")[0])


def put(queue: TaskQueue, lane: int, number: int = 0) -> None:
    queue.put(f"{lane}-{number}", b"", priority=lane)


def test_higher_ones_first_and_the_oldest_of_each(queue: TaskQueue) -> None:
    for number in range(3):
        for lane in (0, 9, 4):
            put(queue, lane, number)
    order = []
    while (lease := queue.claim()) is not None:
        order.append(lease.task_id)
    by_lane = [[one for one in order if one[0] == str(lane)] for lane in (9, 4, 0)]
    assert by_lane == [[f"{lane}-{number}" for number in range(3)] for lane in (9, 4, 0)]
    assert order[:7] == sorted(order[:7], reverse=True, key=lambda one: one[0]), "before a credit"


def test_without_a_word_it_is_the_middle_lane(queue: TaskQueue) -> None:
    put(queue, DEFAULT_PRIORITY - 1)
    queue.put("5-unsaid", b"")
    put(queue, DEFAULT_PRIORITY + 1)
    assert [next_lane(queue) for _ in range(3)] == [6, 5, 4]


@pytest.mark.parametrize("priority", [-1, 10, 42])
def test_other_priorities_are_refused(queue: TaskQueue, priority: int) -> None:
    for put in (
        lambda: queue.put("id", b"", priority=priority),
        lambda: queue.put_many([("id", b"")], priority=priority),
    ):
        with pytest.raises(QueueError, match=f"priority {priority}: use 0 to 9"):
            put()
    assert queue.claim() is None


def test_no_lane_starves(queue: TaskQueue) -> None:
    """As long as every lane has messages, each gets its share of every 80 claims."""
    for lane in LANES:
        for number in range(3):
            put(queue, lane, number)
    for _ in range(5):
        counts: Counter[int] = Counter()
        for _ in range(TURNS):
            lane = next_lane(queue)
            put(queue, lane)
            counts[lane] += 1
        assert set(counts) == set(LANES), counts
        assert counts[9] >= TURNS * (CREDIT - 1) // CREDIT, "the highest gets all that is no credit"


@pytest.mark.parametrize("low", [0, 3])
def test_one_low_message_is_not_overtaken_for_ever(queue: TaskQueue, low: int) -> None:
    put(queue, 9)
    put(queue, low)
    overtaken = 0
    while (lane := next_lane(queue)) != low:
        put(queue, lane)
        overtaken += 1
    assert overtaken < TURNS


def test_credit_that_a_lane_does_not_use_is_not_lost_to_the_others(queue: TaskQueue) -> None:
    """A claim that begins at an empty lane goes on with the highest."""
    for number in range(20):
        put(queue, 9, number)
        put(queue, 0, number)
    counts = Counter(next_lane(queue) for _ in range(20))
    assert counts[9] >= 17


def test_what_was_given_back_comes_before_every_lane(queue: TaskQueue) -> None:
    put(queue, 0)
    lease = queue.claim()
    assert lease is not None
    for number in range(20):
        put(queue, 9, number)
    lease.release()
    assert next_lane(queue) == 0
    assert next_lane(queue) == 9


def test_what_a_dead_worker_held_comes_before_every_lane(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, worker = open_queue(), new_peer()
    index = worker.join("role=Role.WORKER")
    put(client, 0)
    assert worker.ask("lease = queue.claim(); lease.start(); lease.task_id") == "0-0"
    for number in range(20):
        put(client, 9, number)
    worker.kill()
    burial = client.recover(index)
    assert burial is not None
    assert burial.redelivered == ("0-0",)
    assert next_lane(client) == 0


def test_lanes_keep_what_they_had_when_everybody_was_away(
    open_queue: Open,
) -> None:
    first = open_queue()
    for lane in (2, 8, 5):
        put(first, lane)
    first.close()
    assert [next_lane(open_queue()) for _ in range(3)] == [8, 5, 2]


def test_a_batch_is_taken_in_the_same_order(queue: TaskQueue) -> None:
    for lane in (1, 7, 3):
        assert len(queue.put_many([(f"{lane}-{n}", b"") for n in range(2)], priority=lane)) == 2
    leases = queue.claim_many(6)
    assert [lease.task_id for lease in leases] == ["7-0", "7-1", "3-0", "3-1", "1-0", "1-1"]


def test_a_priority_is_seen_from_outside(queue: TaskQueue) -> None:
    for lane in LANES:
        put(queue, lane)
    assert [view.priority for view in queue.messages()] == list(LANES)


def test_several_workers_share_what_is_in_all_lanes(open_queue: Open, new_peer: NewPeer) -> None:
    """Each message goes to one of them, whatever lane it is in."""
    client = open_queue()
    peers = [new_peer() for _ in range(3)]
    for peer in peers:
        peer.join("role=Role.WORKER")
    for number in range(ROOM):
        put(client, number % 10, number)
    begun = [
        peer.begin(
            "taken = []\n"
            "while (lease := queue.claim()) is not None:\n"
            "    lease.start(); lease.complete(b''); taken.append(lease.task_id)\n"
            "taken"
        )
        for peer in peers
    ]
    taken = [one for peer, number in zip(peers, begun, strict=True) for one in peer.answer(number)]
    assert sorted(taken) == sorted(f"{number % 10}-{number}" for number in range(ROOM))
    assert open_queue(role=Role.WORKER).claim() is None


def test_what_was_discarded_does_not_lend_its_place_to_the_next_in_its_slot(
    queue: TaskQueue,
) -> None:
    """A hint that was left in a high lane must not let a low message overtake the others."""
    first = [queue.put(f"9-{number}", b"", priority=9) for number in range(2)]
    for number in range(ROOM - 2):
        put(queue, 5, number)
    low = []
    for ticket in first:
        assert queue.discard(ticket)
        low.append(queue.put(f"0-{ticket.slot}", b"", priority=0))
    assert low[1].slot == first[0].slot, "not the case that is meant"
    assert [next_lane(queue) for _ in range(5)] == [5] * 5
