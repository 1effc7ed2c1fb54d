"""A held message, and the ways in which holding it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import LeaseLost

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from taskiq_supervise.ipc.model import DeadReason
    from taskiq_supervise.ipc.queue import TaskQueue


class Lease:
    """The right to run one message. Made by TaskQueue.claim().

    Every step raises LeaseLost when the message was given to somebody else meanwhile; the step then
    changed nothing.

    Attributes:
        task_id: the id under which it was put.
        payload: its bytes.
        attempt: how often it has been started, this holder's start included once it began.
        held: False after the lease ended, one way or the other.
    """

    __slots__ = ("_queue", "_word", "attempt", "held", "payload", "slot", "task_id")

    def __init__(
        self, queue: TaskQueue, slot: int, word: int, task_id: str, payload: bytes, attempt: int
    ) -> None:
        self._queue = queue
        self._word = word
        self.slot = slot
        self.task_id = task_id
        self.payload = payload
        self.attempt = attempt
        self.held = True

    def start(self) -> int:
        """Say that the task begins now; from here on the worker's death counts. Returns attempt
        (1 …)."""
        self._word = self._step(self._queue.core.start)
        self.attempt += 1
        return self.attempt

    def ack(self) -> None:
        """Acknowledge before the result is there: it never runs again, whatever happens."""
        self._word = self._step(self._queue.core.ack)

    def complete(self, result: Buffer) -> None:
        """Store the result and acknowledge, in one atomic step.

        QueueFull and PayloadTooLarge leave the lease held, so another result can be tried.
        """
        self._check()
        queue = self._queue
        try:
            woken = queue.core.complete(
                queue.participant, self.slot, self._word, result, time.time_ns()
            )
        except LeaseLost:
            self._end()
            raise
        self._end()
        queue.ring_watchers(woken)

    def finish(self, *, keep: bool) -> None:
        """Acknowledge without a result here.

        keep: those who wait learn that it ended so and that the id may come again (a retry); else
        the slot is free at once and the id unknown.
        """
        self._check()
        queue = self._queue
        try:
            woken = queue.core.finish(
                queue.participant, self.slot, self._word, keep, time.time_ns()
            )
        except LeaseLost:
            self._end()
            raise
        self._end()
        queue.ring_watchers(woken)

    def release(self) -> None:
        """Give the message back. A start that has begun is not counted."""
        self._check()
        queue = self._queue
        try:
            sleeper = queue.core.release(queue.participant, self.slot, self._word)
        except LeaseLost:
            self._end()
            raise
        self._end()
        queue.ring(sleeper)

    def dead_letter(self, reason: DeadReason, detail: str) -> None:
        """Keep the message as a dead letter; who waits gets the reason. QueueFull: still held."""
        self._check()
        queue = self._queue
        text = bytes([reason]) + detail.encode()[:900]
        try:
            woken = queue.core.dead_letter(
                queue.participant, self.slot, self._word, text, time.time_ns()
            )
        except LeaseLost:
            self._end()
            raise
        self._end()
        queue.ring_watchers(woken)

    def _check(self) -> None:
        if not self.held:
            raise LeaseLost(f"the lease of task {self.task_id!r} has ended")

    def _step(self, step: _Step) -> int:
        self._check()
        try:
            return step(self.slot, self._word)
        except LeaseLost:
            self._end()
            raise

    def _end(self) -> None:
        if self.held:
            self.held = False
            self._queue.lease_ended(self)

    def __repr__(self) -> str:
        return f"<Lease of {self.task_id!r}, slot {self.slot}, {'held' if self.held else 'ended'}>"


if TYPE_CHECKING:
    from collections.abc import Callable

    _Step = Callable[[int, int], int]
