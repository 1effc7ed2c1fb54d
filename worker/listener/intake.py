"""Where a listener puts what it receives: the one thing that its sources know of the queue.

A source is a broker of taskiq's, or our own server. Behind an intake is a queue in shared memory,
or whatever takes its place where there is none.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.payload import check_fits
from taskiq_supervise.broker.progress import ProgressFolder
from taskiq_supervise.ipc import (
    AlreadyAccepted,
    AsyncTaskQueue,
    MessageState,
    Outcome,
    OutcomeKind,
    Ticket,
    UnknownTask,
)
from taskiq_supervise.worker.listener.settled import Settled

if TYPE_CHECKING:
    from typing import Any

    from taskiq.depends.progress_tracker import TaskProgress
    from typing_extensions import Buffer

_PLAIN = Schedule()
_ENDED_BY_ITSELF = (OutcomeKind.RESULT, OutcomeKind.NO_RESULT)


@dataclass(frozen=True)
class Incoming:
    """One message as it has arrived."""

    task_id: str
    payload: "Buffer"
    buffers: "tuple[Buffer, ...]" = ()
    schedule: Schedule = _PLAIN

    @property
    def size(self) -> int:
        """Bytes, those of the buffers included."""
        parts = (self.payload, *self.buffers)
        return sum(memoryview(part).nbytes for part in parts)


@dataclass(frozen=True)
class Ending:
    """How a message has ended that has no result."""

    ticket: Ticket
    outcome: Outcome
    payload: bytes = b""
    """The message, where it is kept: that of a dead letter."""


class Intake(Protocol):
    """What a source may ask of the queue. Called on the listener's loop."""

    def last_from(self, sender: bytes) -> int:
        """The number of the last message that was accepted from this sender; 0: none, or too long
        ago. sender: 16 bytes."""
        ...

    async def accept(
        self, message: Incoming, sender: tuple[bytes, int] | None = None
    ) -> Ticket | None:
        """Puts it into the queue, waiting for room; when this returns it will be run.

        sender: who numbers its messages, and this one's number. None: it was accepted before.
        Raises PayloadTooLarge and other QueueErrors: refused for good.
        """
        ...

    async def wait(self, target: str | Ticket) -> Outcome:
        """How the task ended, once it has. Raises UnknownTask."""
        ...

    def look(self, target: str | Ticket) -> Outcome | None:
        """How the task ended, None if it has not. Raises UnknownTask."""
        ...

    def progress(self, task_id: str) -> "TaskProgress[Any] | None":
        """What the task has said about its progress, while it runs."""
        ...

    async def acknowledged(self, target: str | Ticket) -> None:
        """Waits until this very message was acknowledged, has ended, or is unknown."""
        ...

    def endings(self) -> "list[Ending]":
        """Messages that have ended otherwise than by the end of their function, and were not
        settled."""
        ...

    def settle(self, ending: "Ending") -> None:
        """Those who wait for its result elsewhere have been told."""
        ...

    async def close(self) -> None:
        """Leaves the queue; what was accepted stays."""
        ...


class SegmentIntake:
    """Into a queue in shared memory."""

    def __init__(self, queue: AsyncTaskQueue, *, max_deliveries: int = 0) -> None:
        """queue: started, and closed by `close()`. max_deliveries: for messages that say nothing
        else; 0: the queue knows."""
        self.queue = queue
        self._max_deliveries = max_deliveries
        self._slots = queue.queue.geometry.slots
        self._settled = Settled(queue.queue.directory / "settled")
        self._progress = ProgressFolder(queue.queue.directory / "progress")

    def last_from(self, sender: bytes) -> int:
        return self.queue.queue.last_from(sender)

    async def accept(
        self, message: Incoming, sender: tuple[bytes, int] | None = None
    ) -> Ticket | None:
        check_fits(message.size, self.queue.queue.directory)
        schedule = message.schedule
        try:
            return await self.queue.put(
                message.task_id,
                message.payload,
                buffers=message.buffers,
                priority=schedule.priority,
                due=schedule.due,
                expires=schedule.expires,
                max_deliveries=schedule.max_deliveries or self._max_deliveries,
                sender=sender,
            )
        except AlreadyAccepted:
            return None

    async def wait(self, target: str | Ticket) -> Outcome:
        return await self.queue.wait(self._checked(target))

    def look(self, target: str | Ticket) -> Outcome | None:
        return self.queue.queue.outcome(self._checked(target))

    def progress(self, task_id: str) -> "TaskProgress[Any] | None":
        return self._progress.get(task_id)

    async def acknowledged(self, target: str | Ticket) -> None:
        try:
            ticket = self.queue.queue.find(target) if isinstance(target, str) else target
        except UnknownTask:
            return
        await self.queue.acknowledged(ticket)

    def endings(self) -> list[Ending]:
        queue = self.queue.queue
        dead, found = [], []
        for view in queue.messages((MessageState.DEAD, MessageState.DONE)):
            ticket = view.ticket
            try:
                outcome = queue.outcome_at(ticket)
                if outcome is None or outcome.kind in _ENDED_BY_ITSELF:
                    continue
                is_dead = outcome.kind is OutcomeKind.DEAD
                if is_dead:
                    dead.append(ticket)
                    if ticket in self._settled:
                        continue
                payload = queue.peek(ticket)[0] if is_dead else b""
            except (LookupError, UnknownTask):  # it has just left
                continue
            found.append(Ending(ticket, outcome, payload))
        self._settled.keep(dead)
        return found

    def settle(self, ending: Ending) -> None:
        if ending.outcome.kind is OutcomeKind.DEAD:
            self._settled.add(ending.ticket)
            return
        with suppress(UnknownTask):  # it made room for newer ones
            self.queue.queue.drop(ending.ticket)

    async def close(self) -> None:
        await self.queue.close()

    def _checked(self, target: str | Ticket) -> str | Ticket:
        """A ticket comes from a client, and the queue trusts those who are attached to it."""
        if isinstance(target, str):
            return target
        if not (0 <= target.slot < self._slots and 0 <= target.generation < 1 << 64):
            raise UnknownTask(f"there is no slot {target.slot} in this queue")
        return target
