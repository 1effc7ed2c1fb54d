"""Participants that join, leave and are killed, beside a model of what they leave behind.

The model has a clock of its own, in hours: those who hold leases see it, and who looks at what is
due is told the time. Nothing is ever due or over by the wall clock.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.ipc.events import HOUR, WallClock
from tests.ipc.peer import SMALL
from tests.ipc.queue_model import MAX_STARTS, Model

from taskiq_supervise.ipc import DeathCause, Lease, TaskQueue, Ticket, lease

STEPS = st.sampled_from(["claim", "start", "ack"])


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


class LifeMachine(RuleBasedStateMachine):
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
        self.began, self.clock = time.time(), WallClock()
        self.real_time, lease.time = lease.time, self.clock  # type: ignore[assignment, attr-defined]
        self.tickets: dict[str, Ticket] = {}
        self.joins()

    def teardown(self) -> None:
        for participant in self.participants:
            participant.queue.close()
        if hasattr(self, "witness"):
            lease.time = self.real_time  # type: ignore[attr-defined]
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

    @rule(hours=st.integers(0, 2), somebody_looks=st.booleans(), data=st.data())
    def time_passes(self, hours: int, somebody_looks: bool, data: st.DataObject) -> None:
        self.model.hour += hours
        self.clock.ahead = self.model.hour * HOUR
        if somebody_looks:
            queue = self.some(data).queue
            queue.core.run_due(queue.participant, self.clock.time_ns())
            self.model.look_at_the_time()

    @rule(steps=st.lists(STEPS, max_size=8), killed=st.booleans(), overdue=st.integers(0, 2))
    def another_process_joins_works_and_dies(
        self, steps: "list[str]", killed: bool, overdue: int
    ) -> None:
        """overdue: how many of its messages take too long, if it started them."""
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
        claimed = [self.model.claim() for step in steps if step == "claim"]
        assert [task_id for task_id in claimed if task_id is not None] == list(held)
        for task_id, did in held.items():
            self.model.messages[task_id].attempts += "start" in did
        cause = DeathCause(pid=pid, signal=signal.SIGKILL)
        judge = self.participants[0].queue
        late = {one for one in list(held)[:overdue] if judge.core.time_out(index, one.encode())}
        assert late == {one for one in list(held)[:overdue] if "start" in held[one]}
        burial = judge.recover(index, cause)
        assert burial is not None
        for task_id in burial.redelivered:
            assert "ack" not in held[task_id]
            self.model.give_back(task_id)
        assert set(burial.timed_out) == late
        assert all("ack" in held[task_id] for task_id in burial.lost)
        assert all(self.model.messages[one].attempts >= MAX_STARTS for one in burial.dead)
        states = dict.fromkeys(burial.lost, "lost") | dict.fromkeys(burial.dead, "dead")
        states |= dict.fromkeys(late, "timed out")
        # In the order in which the slots were repaired, which is when they ended.
        for task_id in sorted(states, key=lambda one: self.model.messages[one].slot):
            self.model.end(task_id, states[task_id])
        assert sorted([*burial.redelivered, *states]) == sorted(held)

    def give_back(self, one: Participant, held: Held) -> None:
        one.held.remove(held)
        if held.acked:
            held.lease.finish(keep=True)
            self.model.end(held.lease.task_id, "ended")
        else:
            held.lease.release()
            self.model.messages[held.lease.task_id].attempts -= held.started
            self.model.give_back(held.lease.task_id)


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
