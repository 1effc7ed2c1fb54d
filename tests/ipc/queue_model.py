"""What the queue should do, as a dict and some lists."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.ipc.peer import ROOM, SMALL

from taskiq_supervise.ipc import OutcomeKind
from taskiq_supervise.ipc.parts import arrange

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_STARTS = 3
MAX_DEAD = SMALL.slots // 8
BLOCK = SMALL.blocks[-1][0]
LANES = 10
CREDIT = 8
KINDS = {
    "done": OutcomeKind.RESULT,
    "ended": OutcomeKind.NO_RESULT,
    "lost": OutcomeKind.WORKER_LOST,
    "dead": OutcomeKind.DEAD,
    "expired": OutcomeKind.EXPIRED,
    "discarded": OutcomeKind.DISCARDED,
    "timed out": OutcomeKind.TIMED_OUT,
}


def lies_in_file(payload: bytes, buffers: "list[bytes]") -> bool:
    return bool(arrange(payload, buffers, BLOCK)[2])


@dataclass
class Message:
    """What the queue should know of a message. state: ready, delayed, held, or one of KINDS.

    due, expires: hours of the model's clock.
    """

    payload: bytes
    buffers: "list[bytes]" = field(default_factory=list)
    priority: int = 5
    due: "int | None" = None
    expires: "int | None" = None
    slot: int = 0
    state: str = "ready"
    attempts: int = 0
    result: bytes = b""
    result_buffers: "list[bytes]" = field(default_factory=list)
    read: bool = False

    @property
    def size(self) -> int:
        return len(self.payload) + sum(map(len, self.buffers))


class Model:
    """The queue as a dict and some lists."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.hour = 0
        self.lanes: dict[int, list[str]] = {}  # in the order in which they became ready
        self.again: list[str] = []  # given back; before those
        self.read: list[str] = []  # outcomes, the first that was read first
        self.ended: list[str] = []  # outcomes, the oldest first
        self.dead: list[str] = []
        self.turns = 0

    # ---- putting ----

    def put(self, task_id: str, message: Message) -> bool:
        if len(self.messages) >= ROOM and not self.make_room():
            return False
        self.messages[task_id] = message
        if message.due is not None:
            message.state = "delayed"
        else:
            self.make_ready(task_id)
        return True

    def make_ready(self, task_id: str) -> None:
        message = self.messages[task_id]
        message.state = "ready"
        self.lanes.setdefault(message.priority, []).append(task_id)

    def make_room(self) -> bool:
        """Forgets the outcome that has to go next."""
        for line in (self.read, self.ended, self.dead):
            if line:
                self.forget(line[0])
                return True
        return False

    def forget(self, task_id: str) -> None:
        del self.messages[task_id]
        for line in (self.read, self.ended, self.dead):
            if task_id in line:
                line.remove(task_id)

    # ---- taking ----

    def next(self) -> "str | None":
        """Takes what is next, whether its time is over or not."""
        for line in self._lines():
            if line:
                return line.pop(0)
        return None

    def _lines(self) -> "Iterator[list[str]]":
        yield self.again
        first = None
        if len(self.lanes) > 1:
            turn, self.turns = self.turns, self.turns + 1
            if turn % CREDIT == CREDIT - 1:
                first = turn // CREDIT % LANES
                yield self.lanes.get(first, [])
        for lane in sorted(self.lanes, reverse=True):
            if lane != first:
                yield self.lanes[lane]

    def is_over(self, task_id: str) -> bool:
        expires = self.messages[task_id].expires
        return expires is not None and expires <= self.hour

    def claim(self) -> "str | None":
        while (task_id := self.next()) is not None:
            message = self.messages[task_id]
            assert message.state == "ready"
            message.state = "held"
            if not self.is_over(task_id):
                return task_id
            self.end(task_id, "expired")
        return None

    def claim_many(self, most: int) -> "list[str]":
        taken = []
        for _ in range(most):
            task_id = self.next()
            if task_id is None:
                break
            taken.append(task_id)
        for task_id in taken:
            self.messages[task_id].state = "held"
        over = [task_id for task_id in taken if self.is_over(task_id)]
        for task_id in taken:
            # In a batch the start comes with the claim, unless there is a time to look at first.
            self.messages[task_id].attempts += task_id not in over
        for task_id in over:
            self.end(task_id, "expired")
        return [task_id for task_id in taken if task_id not in over]

    def give_back(self, task_id: str) -> None:
        message = self.messages[task_id]
        if message.due is not None:  # the wall clock has not come so far, only the model's
            message.state = "delayed"
        else:
            message.state = "ready"
            self.again.append(task_id)

    # ---- ending ----

    def end(self, task_id: str, state: str, result: bytes = b"") -> None:
        message = self.messages[task_id]
        message.state, message.result = state, result
        (self.dead if state == "dead" else self.ended).append(task_id)
        if len(self.dead) > MAX_DEAD:
            self.forget(self.dead[0])

    def take_out(self, task_id: str, state: str) -> None:
        """Ends one that waits."""
        for line in (self.again, *self.lanes.values()):
            if task_id in line:
                line.remove(task_id)
        self.end(task_id, state)

    def look_at_the_time(self) -> None:
        """In the order of the slots."""
        for task_id, message in sorted(self.messages.items(), key=lambda item: item[1].slot):
            if message.state not in ("ready", "delayed"):
                continue
            if self.is_over(task_id):
                self.take_out(task_id, "expired")
            elif (
                message.state == "delayed" and message.due is not None and message.due <= self.hour
            ):
                self.make_ready(task_id)

    # ---- looking ----

    def in_state(self, *states: str) -> "list[str]":
        return [task_id for task_id, one in self.messages.items() if one.state in states]

    def known(self) -> "list[str]":
        """The ids of outcomes."""
        return self.in_state(*KINDS)

    def next_time(self) -> "int | None":
        """The hour at which somebody has to look."""
        times = []
        for message in self.messages.values():
            if message.state == "delayed":
                times.append(message.due)
            if message.state in ("ready", "delayed"):
                times.append(message.expires)
        return min((time for time in times if time is not None), default=None)

    def files(self) -> int:
        """How many there are once all that are not needed were swept away."""
        return sum(
            lies_in_file(one.payload, one.buffers)
            if one.state not in KINDS or one.state == "dead"
            else one.state == "done" and lies_in_file(one.result, one.result_buffers)
            for one in self.messages.values()
        )
