"""TaskQueue against a dict and some lists, with participants that join, leave and are killed."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    DeathCause,
    Lease,
    LeaseLost,
    OutcomeKind,
    QueueFull,
    TaskQueue,
    UnknownTask,
)

MAX_STARTS = 3
MAX_DEAD = SMALL.slots // 8
KINDS = {
    "done": OutcomeKind.RESULT,
    "ended": OutcomeKind.NO_RESULT,
    "lost": OutcomeKind.WORKER_LOST,
    "dead": OutcomeKind.DEAD,
}


@dataclass
class Message:
    """What the queue should know of a message. state: ready, held, or one of KINDS."""

    payload: bytes
    state: str = "ready"
    attempts: int = 0
    result: bytes = b""
    read: bool = False


class Model:
    """The queue as a dict and some lists."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.new: list[str] = []  # in the order in which they were put
        self.again: list[str] = []  # given back; before those
        self.read: list[str] = []  # outcomes, the first that was read first
        self.ended: list[str] = []  # outcomes, the oldest first
        self.dead: list[str] = []

    def put(self, task_id: str, payload: bytes) -> bool:
        if len(self.messages) == SMALL.slots and not self.make_room():
            return False
        self.messages[task_id] = Message(payload)
        self.new.append(task_id)
        return True

    def make_room(self) -> bool:
        """Forgets the outcome that has to go next."""
        for line in (self.read, self.ended, self.dead):
            while line:
                if self.messages.pop(line.pop(0), None) is not None:
                    return True
        return False

    def claim(self, task_id: str) -> Message:
        if self.again:  # several that came back at once came in any order
            self.again.remove(task_id)
        else:
            assert task_id == self.new.pop(0)
        message = self.messages[task_id]
        assert message.state == "ready"
        message.state = "held"
        return message

    def give_back(self, task_id: str) -> None:
        self.messages[task_id].state = "ready"
        self.again.append(task_id)

    def end(self, task_id: str, state: str, result: bytes = b"") -> None:
        message = self.messages[task_id]
        message.state, message.result = state, result
        (self.dead if state == "dead" else self.ended).append(task_id)
        if len(self.dead) > MAX_DEAD:
            self.messages.pop(self.dead.pop(0), None)

    def known(self) -> "list[str]":
        """The ids of outcomes."""
        return [task_id for task_id, message in self.messages.items() if message.state in KINDS]


@dataclass(eq=False)
class Held:
    """A lease in the hands of a participant."""

    lease: Lease
    started: bool = False
    acked: bool = False


@dataclass(eq=False)
class Participant:
    queue: TaskQueue
    held: list[Held] = field(default_factory=list)


STEPS = st.sampled_from(["claim", "start", "ack"])


class QueueMachine(RuleBasedStateMachine):
    """Every rule does the same to the queue and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.participants: list[Participant] = []
        self.puts = 0

    @initialize()
    def the_first_joins(self) -> None:
        base = os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]
        self.folder = Path(tempfile.mkdtemp(prefix="m", dir=base))
        self.witness = TaskQueue.open("q", self.folder, geometry=SMALL)
        self.joins()

    def teardown(self) -> None:
        for participant in self.participants:
            participant.queue.close()
        if hasattr(self, "witness"):
            self.witness.close()
            shutil.rmtree(self.folder)

    def some(self, data: st.DataObject) -> Participant:
        return data.draw(st.sampled_from(self.participants), "participant")

    def some_held(self, data: st.DataObject) -> "tuple[Participant, Held]":
        pairs = [(one, held) for one in self.participants for held in one.held]
        return pairs[data.draw(st.integers(0, len(pairs) - 1), "held")]

    def holds(self) -> bool:
        return any(one.held for one in self.participants)

    # ---- life ----

    @precondition(lambda self: len(self.participants) < 5)
    @rule()
    def joins(self) -> None:
        self.participants.append(Participant(TaskQueue.open("q", self.folder)))

    @precondition(lambda self: len(self.participants) > 1)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        one = self.some(data)
        for held in list(one.held[1:]):  # close() gives back in any order, which would not repeat
            self.give_back(one, held)
        one.queue.close()
        self.participants.remove(one)
        for held in one.held:
            if held.acked:
                self.model.end(held.lease.task_id, "lost")
            else:
                self.model.messages[held.lease.task_id].attempts -= held.started
                self.model.give_back(held.lease.task_id)

    @rule(steps=st.lists(STEPS, max_size=8), killed=st.booleans())
    def another_process_joins_works_and_dies(self, steps: "list[str]", killed: bool) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, json.dumps(work(self.folder, steps)).encode())
                if killed:
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            index, held = json.load(pipe)
        os.waitpid(pid, 0)
        for task_id, did in held.items():
            self.model.claim(task_id).attempts += "start" in did
        cause = DeathCause(pid=pid, signal=signal.SIGKILL)
        burial = self.participants[0].queue.recover(index, cause)
        assert burial is not None
        for task_id in burial.redelivered:
            assert "ack" not in held[task_id]
            self.model.give_back(task_id)
        # The two lists keep the order in which the slots were repaired, which is when they ended.
        for state, ended in (("lost", burial.lost), ("dead", burial.dead)):
            for task_id in ended:
                if state == "dead":
                    assert self.model.messages[task_id].attempts >= MAX_STARTS
                else:
                    assert "ack" in held[task_id]
                self.model.end(task_id, state)
        assert sorted(burial.redelivered + burial.dead + burial.lost) == sorted(held)

    # ---- messages ----

    @rule(data=st.data(), payload=st.binary(max_size=300), count=st.integers(1, 15))
    def puts_some(self, data: st.DataObject, payload: bytes, count: int) -> None:
        queue = self.some(data).queue
        if sum(len(message.payload) > 200 for message in self.model.messages.values()) > 40:
            payload = payload[:200]  # blocks are not modelled; this many there are
        for _ in range(count):
            self.puts += 1
            task_id = f"task {self.puts}"
            if self.model.put(task_id, payload):
                queue.put(task_id, payload)
            else:
                with pytest.raises(QueueFull):
                    queue.put(task_id, payload)

    @rule(data=st.data(), count=st.integers(1, 6))
    def claims(self, data: st.DataObject, count: int) -> None:
        one = self.some(data)
        for _ in range(count):
            lease = one.queue.claim()
            if lease is None:
                assert not self.model.new
                assert not self.model.again
                return
            message = self.model.claim(lease.task_id)
            assert (lease.payload, lease.attempt) == (message.payload, message.attempts)
            one.held.append(Held(lease))

    @precondition(holds)
    @rule(data=st.data())
    def starts_or_acknowledges(self, data: st.DataObject) -> None:
        _, held = self.some_held(data)
        if not held.started:
            message = self.model.messages[held.lease.task_id]
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
    @rule(data=st.data(), result=st.binary(max_size=64))
    def completes(self, data: st.DataObject, result: bytes) -> None:
        one, held = self.some_held(data)
        if not held.started:
            with pytest.raises(ValueError, match="wrong step"):
                held.lease.complete(result)
            return
        held.lease.complete(result)
        one.held.remove(held)
        self.model.end(held.lease.task_id, "done", result)
        with pytest.raises(LeaseLost):
            held.lease.complete(b"again")

    @precondition(holds)
    @rule(data=st.data(), keep=st.booleans())
    def finishes(self, data: st.DataObject, keep: bool) -> None:
        one, held = self.some_held(data)
        if not held.started:
            return
        held.lease.finish(keep=keep)
        one.held.remove(held)
        if keep:
            self.model.end(held.lease.task_id, "ended")
        else:
            del self.model.messages[held.lease.task_id]

    @precondition(holds)
    @rule(data=st.data())
    def gives_back(self, data: st.DataObject) -> None:
        self.give_back(*self.some_held(data))

    def give_back(self, one: Participant, held: Held) -> None:
        one.held.remove(held)
        if held.acked:
            held.lease.finish(keep=True)
            self.model.end(held.lease.task_id, "ended")
        else:
            held.lease.release()
            self.model.messages[held.lease.task_id].attempts -= held.started
            self.model.give_back(held.lease.task_id)

    @precondition(holds)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        one, held = self.some_held(data)
        held.lease.dead_letter(DeadReason.UNKNOWN_TASK, "unknown")
        one.held.remove(held)
        self.model.end(held.lease.task_id, "dead")

    @precondition(lambda self: bool(self.model.known()))
    @rule(data=st.data())
    def reads(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.model.known()))
        message = self.model.messages[task_id]
        outcome = self.some(data).queue.outcome(task_id)
        assert outcome is not None
        assert (outcome.kind, outcome.data) == (KINDS[message.state], message.result)
        assert outcome.attempts == message.attempts
        if not message.read and message.state not in ("dead", "ended"):
            message.read = True
            self.model.read.append(task_id)

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
    def the_counts_are_those_of_the_model(self) -> None:
        if not hasattr(self, "witness"):
            return
        states = [message.state for message in self.model.messages.values()]
        stats = self.witness.stats()
        held = [held for one in self.participants for held in one.held]
        assert stats.ready == states.count("ready") == len(self.model.new) + len(self.model.again)
        assert stats.leased == sum(not one.started for one in held)
        assert stats.running == sum(one.started for one in held)
        assert stats.done == sum(states.count(state) for state in ("done", "ended", "lost"))
        assert stats.dead == states.count("dead")
        assert stats.free == SMALL.slots - len(states)


def work(folder: Path, steps: "list[str]") -> "tuple[int, dict[str, list[str]]]":
    """In the other process. Returns its index, and what it did with each message it claimed."""
    queue = TaskQueue.open("q", folder)
    lease, did = None, dict[str, list[str]]()
    for step in steps:
        if step == "claim":
            lease = queue.claim()
            if lease is not None:
                did[lease.task_id] = []
        elif lease is not None and step not in did[lease.task_id]:
            if step == "start":
                lease.start()
            elif "start" in did[lease.task_id]:
                lease.ack()
            else:
                continue
            did[lease.task_id].append(step)
    return queue.participant, did


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
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
    run(examples=40, steps=60)


@pytest.mark.stress
def test_the_queue_does_what_a_dict_and_some_lists_would_in_the_long_run() -> None:
    run(examples=int(3 * float(os.environ.get("STRESS_SECONDS", "30"))), steps=120)
