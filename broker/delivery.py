"""One message that this process has taken from the queue, until it has ended.

taskiq speaks of acknowledging a message and of saving its result as two things, done by two objects
that do not know each other. In the queue both are one step on one lease. A delivery is what joins
them: the receiver acknowledges it, the result backend completes it, whichever order the
acknowledgement type asks for.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar

from taskiq_supervise.broker.payload import Payload, buffers_of, check_fits, size_of
from taskiq_supervise.broker.queue import Held, Queue
from taskiq_supervise.ipc import DeadReason, LeaseExpired, LeaseLost

logger = logging.getLogger("taskiq_supervise.broker")

ROOM_PATIENCE = 60.0
"""Seconds that a result waits for room. Requests leave room for results, so what a result waits for
is that others of its size are read, or expire, or make room; clients that are busy with the results
they have take seconds for that, and a result that is dropped was computed in vain."""

current_delivery: "ContextVar[Delivery | None]" = ContextVar("current_delivery", default=None)
"""The delivery whose task the running code belongs to; threads of sync tasks inherit it."""


class Delivery:
    """A lease on its way through taskiq. Called from the thread of its event loop, except where
    it says so."""

    __slots__ = (
        "_loop",
        "_on_change",
        "_on_end",
        "_queue",
        "acked",
        "completed",
        "ended",
        "finished",
        "given_back",
        "keep",
        "kept_back",
        "lease",
        "manual",
        "started",
        "waiting",
    )

    def __init__(
        self,
        lease: Held,
        queue: Queue,
        on_end: "Callable[[Delivery], None]",
        on_change: Callable[[], None],
    ) -> None:
        """queue: the lease's."""
        self.lease = lease
        self.started = False
        self.acked = False
        self.ended = False
        """The lease is over: completed, finished, released, put aside, or lost."""
        self.completed = False
        """Ended with its result in the queue."""
        self.finished = False
        """No code of the task runs any more."""
        self.given_back = False
        """It is to be run again elsewhere; what its code still does must not get out."""
        self.manual = False
        """Its task acknowledges by itself, and until then has no result."""
        self.kept_back: bytes | None = None
        self.keep = True
        """Those who wait look here for the result, and have to be told when there is none."""
        self.waiting = 0
        """Its task waits for so many results of other tasks."""
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._on_change = on_change

    @property
    def task_id(self) -> str:
        return self.lease.task_id

    @property
    def payload(self) -> bytes:
        """What the formatter reads; with buffers that may lie in shared memory."""
        return Payload.of(self.lease.payload, self.lease.buffers)

    def start(self) -> int:
        """Counts the start; returns which one it is. Raises LeaseLost, LeaseExpired."""
        attempt = self.lease.start()
        self.started = True
        return attempt

    async def ack(self) -> None:
        """From now on the message never runs again, whatever happens to this process."""
        if self.acked or self.ended:
            return
        await self._queue.acknowledge(self.lease)
        self.acked = True
        if self.kept_back is not None:
            await self.complete(self.kept_back)
        elif self.finished:
            self.finish()

    async def complete(self, result: bytes) -> None:
        """Result and acknowledgement in one step. The buffers of a Payload are part of it.

        Raises PayloadTooLarge; QueueFull when no room was found in `ROOM_PATIENCE` seconds.
        """
        if self.manual and not self.acked:
            self.kept_back = result
            return
        if self.ended:
            return
        check_fits(size_of(result), self._queue.directory)
        try:
            await self._queue.complete(
                self.lease, result, buffers_of(result), timeout=ROOM_PATIENCE
            )
        except LeaseLost as error:
            logger.warning("The result of task %s is dropped: %s", self.task_id, error)
        else:
            self.completed = True
        self._end()

    def finish(self) -> None:
        """Acknowledged, without a result here: the same id may come again, or has it elsewhere."""
        if self.ended:
            return
        try:
            self.lease.finish(keep=self.keep)
        except LeaseLost as error:
            logger.warning("The end of task %s is dropped: %s", self.task_id, error)
        self._end()

    def release(self) -> None:
        """Given back to the queue, the start not counted."""
        if self.ended:
            return
        try:
            self.lease.release()
        except LeaseLost as error:
            logger.warning("Task %s is not given back: %s", self.task_id, error)
        self._end()

    def dead_letter(self, reason: DeadReason, detail: str) -> None:
        """Put aside; those who wait get an error that says why."""
        if self.ended:
            return
        try:
            self.lease.dead_letter(reason, detail)
        except LeaseLost as error:
            logger.warning("Task %s is not put aside: %s", self.task_id, error)
        self._end()

    def lost(self, error: LeaseLost) -> None:
        """Somebody else has it, or it came too late; nothing that is done here counts any more."""
        if isinstance(error, LeaseExpired):
            logger.info("Task %s is not run, it has expired: %s", self.task_id, error)
        else:
            logger.warning("Task %s is not ours any more: %s", self.task_id, error)
        if not self.ended:
            self._end()

    def begin_wait(self) -> None:
        self._count_wait(1)

    def end_wait(self) -> None:
        self._count_wait(-1)

    def _count_wait(self, change: int) -> None:
        """Also from the loop that a sync task runs in its own thread."""
        if asyncio.get_running_loop() is self._loop:
            self._change_waiting(change)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._change_waiting, change)

    def _change_waiting(self, change: int) -> None:
        self.waiting += change
        self._on_change()

    def _end(self) -> None:
        self.ended = True
        # Whoever still has the delivery keeps no large memory by it.
        self.lease.buffers = ()
        self._on_end(self)
