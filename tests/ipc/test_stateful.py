"""TaskQueue against a dict and some lists: everything that is done with messages."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.ipc.events import HOUR
from tests.ipc.peer import ROOM, SMALL
from tests.ipc.queue_life import Held, LifeMachine, Participant
from tests.ipc.queue_model import KINDS, Message

from taskiq_supervise.ipc import (
    DeadReason,
    Lease,
    LeaseExpired,
    LeaseLost,
    QueueFull,
    Ticket,
    UnknownTask,
)

LARGE_ONES = 30
"""Messages that may have a block at a time: blocks are not modelled, and this many there are."""
SIZES = st.lists(st.sampled_from([0, 5, 100, 600]), max_size=2)
PRIORITIES = st.sampled_from([5, 5, 5, 0, 2, 9])
HOURS = st.none() | st.integers(1, 3)


def holds(machine: LifeMachine) -> bool:
    return machine.holds()


class QueueMachine(LifeMachine):
    """And in the same way the life of messages."""

    # ---- messages ----

    def at(self, hour: "int | None") -> "float | None":
        return None if hour is None else self.began + hour * HOUR

    def new(
        self, payload: bytes, sizes: "list[int]", priority: int,
        due: "int | None", expires: "int | None",
    ) -> Message:  # fmt: skip
        if sum(one.size > 150 for one in self.model.messages.values()) > LARGE_ONES:
            payload, sizes = payload[:150], []
        buffers = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
        return Message(
            payload, buffers, priority,
            None if due is None else self.model.hour + due,
            None if expires is None else self.model.hour + expires - 1,  # some are over at once
        )  # fmt: skip

    @rule(
        data=st.data(), payload=st.binary(max_size=300), sizes=SIZES, priority=PRIORITIES,
        due=HOURS, expires=HOURS, count=st.integers(1, 15),
    )  # fmt: skip
    def puts_some(
        self, data: st.DataObject, payload: bytes, sizes: "list[int]", priority: int,
        due: "int | None", expires: "int | None", count: int,
    ) -> None:  # fmt: skip
        queue = self.some(data).queue
        for _ in range(count):
            self.puts += 1
            task_id = f"task {self.puts}"
            new = self.new(payload, sizes, priority, due, expires)

            def put(task_id: str = task_id, new: Message = new) -> Ticket:
                return queue.put(
                    task_id, new.payload, buffers=new.buffers, priority=new.priority,
                    due=self.at(new.due), expires=self.at(new.expires),
                )  # fmt: skip

            if self.model.put(task_id, new):
                self.tickets[task_id] = put()
                new.slot = self.tickets[task_id].slot
            else:
                with pytest.raises(QueueFull):
                    put()

    @rule(data=st.data(), priority=PRIORITIES, count=st.integers(0, 20), size=st.integers(0, 150))
    def puts_many(self, data: st.DataObject, priority: int, count: int, size: int) -> None:
        news = []
        for _ in range(count):
            self.puts += 1
            news.append((f"task {self.puts}", bytes(size)))
        tickets = self.some(data).queue.put_many(news, priority=priority)
        for number, (task_id, payload) in enumerate(news):
            if not self.model.put(task_id, Message(payload, priority=priority)):
                assert len(tickets) == number
                return
            assert tickets[number].task_id == task_id
            self.tickets[task_id] = tickets[number]
            self.model.messages[task_id].slot = tickets[number].slot
        assert len(tickets) == count

    @rule(data=st.data(), count=st.integers(1, 6))
    def claims(self, data: st.DataObject, count: int) -> None:
        one = self.some(data)
        for _ in range(count):
            lease, expected = one.queue.claim(), self.model.claim()
            if lease is None:
                assert expected is None
                return
            self.took(one, lease, expected, started=False)

    @rule(data=st.data(), most=st.integers(1, 10))
    def claims_many(self, data: st.DataObject, most: int) -> None:
        one = self.some(data)
        leases, expected = one.queue.claim_many(most), self.model.claim_many(most)
        assert len(leases) == len(expected)
        for lease, task_id in zip(leases, expected, strict=True):
            self.took(one, lease, task_id, started=True)

    def took(
        self, one: Participant, lease: Lease, expected: "str | None", *, started: bool
    ) -> None:
        assert lease.task_id == expected
        message = self.model.messages[lease.task_id]
        assert (lease.payload, lease.attempt) == (message.payload, message.attempts)
        assert [bytes(buffer) for buffer in lease.buffers] == message.buffers
        one.held.append(Held(lease, started))

    @precondition(holds)
    @rule(data=st.data())
    def starts_or_acknowledges(self, data: st.DataObject) -> None:
        one, held = self.some_held(data)
        task_id = held.lease.task_id
        if not held.started and self.model.is_over(task_id):
            with pytest.raises(LeaseExpired):
                held.lease.start()
            one.held.remove(held)
            self.model.end(task_id, "expired")
        elif not held.started:
            message = self.model.messages[task_id]
            message.attempts += 1
            assert held.lease.start() == message.attempts
            held.started = True
        elif not held.acked:
            held.lease.ack()
            held.acked = True
        else:
            with pytest.raises(ValueError, match="wrong step"):
                held.lease.ack()

    @precondition(holds)
    @rule(data=st.data(), result=st.binary(max_size=64), sizes=SIZES)
    def completes(self, data: st.DataObject, result: bytes, sizes: "list[int]") -> None:
        one, held = self.some_held(data)
        buffers = [bytes([number + 7]) * size for number, size in enumerate(sizes)]
        if not held.started:
            with pytest.raises(ValueError, match="wrong step"):
                held.lease.complete(result, buffers)
            return
        held.lease.complete(result, buffers)
        one.held.remove(held)
        self.model.end(held.lease.task_id, "done", result)
        self.model.messages[held.lease.task_id].result_buffers = buffers
        with pytest.raises(LeaseLost):
            held.lease.complete(b"again")

    @precondition(holds)
    @rule(data=st.data(), keep=st.booleans())
    def finishes(self, data: st.DataObject, keep: bool) -> None:
        one, held = self.some_held(data)
        if not held.started:
            return
        held.lease.finish(keep=keep)
        self.finished(one, [held], keep)

    @precondition(holds)
    @rule(data=st.data(), keep=st.booleans())
    def finishes_many(self, data: st.DataObject, keep: bool) -> None:
        one, _ = self.some_held(data)
        started = [held for held in one.held if held.started]
        assert one.queue.finish_many([held.lease for held in started], keep=keep) == 0
        self.finished(one, started, keep)

    def finished(self, one: Participant, ended: "list[Held]", keep: bool) -> None:
        for held in ended:
            one.held.remove(held)
            if keep:
                self.model.end(held.lease.task_id, "ended")
            else:
                self.model.forget(held.lease.task_id)

    @precondition(holds)
    @rule(data=st.data())
    def gives_back(self, data: st.DataObject) -> None:
        self.give_back(*self.some_held(data))

    @precondition(holds)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        one, held = self.some_held(data)
        held.lease.dead_letter(DeadReason.UNKNOWN_TASK, "unknown")
        one.held.remove(held)
        self.model.end(held.lease.task_id, "dead")

    def some_message(self, data: st.DataObject) -> "tuple[str, Message]":
        task_id = data.draw(st.sampled_from(list(self.model.messages)), "message")
        return task_id, self.model.messages[task_id]

    @precondition(lambda self: bool(self.model.messages))
    @rule(data=st.data())
    def discards(self, data: st.DataObject) -> None:
        task_id, message = self.some_message(data)
        waits = message.state in ("ready", "delayed")
        assert self.some(data).queue.discard(self.tickets[task_id]) == waits
        if waits:
            self.model.take_out(task_id, "discarded")

    @precondition(lambda self: bool(self.model.messages))
    @rule(data=st.data())
    def drops(self, data: st.DataObject) -> None:
        task_id, message = self.some_message(data)
        if message.state in KINDS:
            self.some(data).queue.drop(self.tickets[task_id])
            self.model.forget(task_id)
        else:
            with pytest.raises(UnknownTask):
                self.some(data).queue.drop(self.tickets[task_id])

    @precondition(lambda self: bool(self.model.in_state("dead")))
    @rule(data=st.data())
    def sends_a_dead_letter_again(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.model.in_state("dead")))
        old = self.model.messages[task_id]
        new = self.some(data).queue.requeue(self.tickets[task_id])
        if len(self.model.messages) >= ROOM:
            assert self.model.make_room()  # it may be its own place
        if task_id in self.model.messages:
            self.model.forget(task_id)
        again = Message(old.payload, old.buffers, old.priority, slot=new.slot)
        assert self.model.put(task_id, again)
        self.tickets[task_id] = new

    @precondition(lambda self: bool(self.model.messages))
    @rule(data=st.data())
    def peeks(self, data: st.DataObject) -> None:
        task_id, message = self.some_message(data)
        queue, ticket = self.some(data).queue, self.tickets[task_id]
        if message.state in KINDS and message.state != "dead":
            with pytest.raises(UnknownTask):
                queue.peek(ticket)
            return
        payload, buffers = queue.peek(ticket)
        assert (payload, [bytes(one) for one in buffers]) == (message.payload, message.buffers)

    @precondition(lambda self: bool(self.model.known()))
    @rule(data=st.data())
    def reads(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.model.known()))
        message = self.model.messages[task_id]
        outcome = self.some(data).queue.outcome(task_id)
        assert outcome is not None
        assert (outcome.kind, outcome.data) == (KINDS[message.state], message.result)
        assert [bytes(one) for one in outcome.buffers] == message.result_buffers
        assert outcome.attempts == message.attempts
        if not message.read and message.state not in ("dead", "ended"):
            message.read = True
            self.model.read.append(task_id)

    @rule(data=st.data())
    def sweeps(self, data: st.DataObject) -> None:
        queue = self.some(data).queue
        queue.sweep_files()
        assert len(queue.files.names()) == self.model.files()

    # ---- what always holds ----

    @invariant()
    def all_are_known_and_no_others(self) -> None:
        if not hasattr(self, "witness"):
            return
        for number in range(1, self.puts + 1):
            task_id = f"task {number}"
            with suppress(UnknownTask):
                self.witness.find(task_id)
                assert task_id in self.model.messages
                continue
            assert task_id not in self.model.messages

    @invariant()
    def they_are_shown_as_they_are(self) -> None:
        if not hasattr(self, "witness"):
            return
        shown = {
            view.ticket: (view.attempts, view.priority, view.size)
            for view in self.witness.messages()
        }
        assert shown == {
            self.tickets[task_id]: (one.attempts, one.priority, one.size)
            for task_id, one in self.model.messages.items()
        }

    @invariant()
    def somebody_will_look_in_time(self) -> None:
        if not hasattr(self, "witness"):
            return
        at = self.at(self.model.next_time())
        assert at is None or self.witness.core.next_due <= at * 1e9 + 1000

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        if not hasattr(self, "witness"):
            return
        states = [message.state for message in self.model.messages.values()]
        stats = self.witness.stats()
        held = [held for one in self.participants for held in one.held]
        lines = [self.model.again, *self.model.lanes.values()]
        assert stats.ready == states.count("ready") == sum(map(len, lines))
        assert stats.delayed == states.count("delayed")
        assert stats.leased == sum(not one.started for one in held)
        assert stats.running == sum(one.started for one in held)
        assert stats.dead == states.count("dead")
        assert stats.done == len(self.model.known()) - stats.dead
        assert stats.free == SMALL.slots - len(states)


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.fixture(autouse=True)
def no_children() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_queue_does_what_a_dict_and_some_lists_would() -> None:
    run(examples=20, steps=60)


@pytest.mark.stress
def test_the_queue_does_what_a_dict_and_some_lists_would_in_the_long_run() -> None:
    run(examples=int(3 * float(os.environ.get("STRESS_SECONDS", "30"))), steps=120)
