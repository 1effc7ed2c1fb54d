"""A held message, and the ways in which holding it ends."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from taskiq_supervise.ipc.errors import LeaseExpired, LeaseLost
from taskiq_supervise.ipc.model import DeathCause, OutcomeKind
from taskiq_supervise.ipc.outcomes import verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from taskiq_supervise.ipc.model import DeadReason
    from taskiq_supervise.ipc.queue import TaskQueue


NO_RESULT, FORGET = int(OutcomeKind.NO_RESULT), 7
"""For the core's finish: the id may come again, or leave no outcome at all."""


class Lease:
    """The right to run one message. Made by TaskQueue.claim().

    Every step raises LeaseLost when the message was given to somebody else meanwhile; the step then
    changed nothing.

    Attributes:
        task_id: the id under which it was put.
        payload: its bytes.
        buffers: its out-of-band buffers; large ones are views of shared memory, which live for as
            long as somebody holds them.
        attempt: how often it has been started, this holder's start included once it began.
        held: False after the lease ended, one way or the other.
    """

    __slots__ = (
        "_queue",
        "attempt",
        "buffers",
        "expires_ns",
        "file",
        "held",
        "payload",
        "slot",
        "task_id",
        "word",
    )

    def __init__(
        self,
        queue: TaskQueue,
        slot: int,
        word: int,
        task_id: str,
        payload: bytes,
        attempt: int,
        expires_ns: int,
    ) -> None:
        self._queue = queue
        self.slot = slot
        self.word = word
        self.task_id = task_id
        self.payload = payload
        self.buffers: tuple[memoryview, ...] = ()
        self.attempt = attempt
        self.expires_ns = expires_ns
        self.file = ""
        self.held = True

    def start(self) -> int:
        """Say that the task begins now; from here on the worker's death counts. Returns attempt
        (1 …). LeaseExpired: its time is over."""
        if self.expires_ns and self.end_if_expired():
            raise LeaseExpired(f"the time of task {self.task_id!r} is over")
        self._step(self._queue.core.start)
        self.attempt += 1
        return self.attempt

    def end_if_expired(self) -> bool:
        """True: its time was over before it was started; those who wait learn it."""
        if not self.expires_ns or time.time_ns() < self.expires_ns:
            return False
        self._finish(OutcomeKind.EXPIRED)
        return True

    def ack(self) -> None:
        """Acknowledge before the result is there: it never runs again, whatever happens."""
        self._step(self._queue.core.ack)

    def complete(self, result: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        """Store the result and acknowledge, in one atomic step.

        QueueFull leaves the lease held, so another result can be tried.
        """
        self._end(self._queue.complete, self, result, buffers)

    def finish(self, *, keep: bool) -> None:
        """Acknowledge without a result here.

        keep: those who wait learn that it ended so and that the id may come again (a retry); else
        the slot is free at once and the id unknown.
        """
        self._finish(NO_RESULT if keep else FORGET)

    def _finish(self, how: int) -> None:
        queue = self._queue
        self._end(queue.core.finish, queue.participant, self.slot, self.word, how)

    def dead_letter(self, reason: DeadReason, detail: str) -> None:
        """Keep the message as a dead letter; who waits gets the reason. QueueFull: still held."""
        self._check()
        queue = self._queue
        tag = queue.core.participant(queue.participant)[4]
        text = verdict(reason, detail, DeathCause(os.getpid(), tag - 1 if tag else None))
        self.file = ""  # it is kept with the message
        self._end(queue.core.dead_letter, queue.participant, self.slot, self.word, text)

    def release(self) -> None:
        """Give the message back. A start that has begun is not counted."""
        self._check()
        queue = self._queue
        queue.lease_ends(self)
        try:
            sleeper, is_news = queue.core.release(queue.participant, self.slot, self.word)
        except LeaseLost:
            self.file = ""
            self.ended()
            raise
        except BaseException:
            queue.lease_stays(self)
            raise
        self.file = ""  # it stays with the message
        self.ended()
        queue.ring(sleeper)
        if is_news:
            queue.ring_custodian()

    def _check(self) -> None:
        if not self.held:
            raise LeaseLost(f"the lease of task {self.task_id!r} has ended")

    def _step(self, step: Callable[[int, int], int]) -> None:
        if not self.held:
            self._check()
        try:
            self.word = step(self.slot, self.word)
        except LeaseLost:
            self.file = ""
            self.ended()
            raise

    def _end(self, commit: Callable[..., tuple[int, ...]], *args: Any) -> None:
        """commit: ends it in the queue and says whom to ring."""
        if not self.held:
            self._check()
        self._queue.lease_ends(self)
        try:
            woken = commit(*args)
        except LeaseLost:
            self.file = ""  # another holder's now
            self.ended()
            raise
        except BaseException:
            self._queue.lease_stays(self)
            raise
        self.ended()
        if woken:
            self._queue.ring_watchers(woken)

    def ended(self) -> None:
        """It is over in the queue; the file of its payload is not needed any more."""
        if self.held:
            self.held = False
            if self.file:
                self._queue.files.drop(self.file)
            self._queue.lease_ended(self)

    def __repr__(self) -> str:
        return f"<Lease of {self.task_id!r}, slot {self.slot}, {'held' if self.held else 'ended'}>"
