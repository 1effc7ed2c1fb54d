"""A broker that is not ours, listened to once for all workers.

The next listener of a reload listens before it may put anything, and keeps what arrives; what its
predecessor has put of that is left out when it takes over (see `seen`), once for each time.

A message that wants to be acknowledged is, when its task was: begun, executed or saved, as its
acknowledgement type says. Who loses its listener before that gives it to the next one again. Until
it is acknowledged the same bytes are the same message: they are left out, and acknowledged for the
task that was put the first time.
"""

import asyncio
import logging
import os
from collections import Counter, deque
from typing import TYPE_CHECKING

from taskiq.acks import AckableMessage
from taskiq.utils import maybe_awaitable

from taskiq_supervise.broker.outcomes import error_result
from taskiq_supervise.ipc import QueueError, Ticket
from taskiq_supervise.worker.listener.intake import Incoming, Intake
from taskiq_supervise.worker.listener.seen import Seen
from taskiq_supervise.worker.listener.settling import UNNAMED
from taskiq_supervise.worker.zeromq_context import close_context, listen_eagerly, renew_context

if TYPE_CHECKING:
    from pathlib import Path

    from taskiq.abc.broker import AsyncBroker

logger = logging.getLogger("taskiq_supervise.listener")

GRACE = 0.5
"""Seconds after the baton in which copies of what the predecessor has put may still arrive."""

ROOM = 64
"""Messages read ahead of the queue: a full one has the broker wait, not this process grow."""

_LONGEST_ID = 200
"""Bytes that the queue takes."""


class ListeningEnded(Exception):
    """The broker's `listen()` came to an end by itself."""


class ForeignSource:
    """One broker's messages, into one intake. A Source."""

    def __init__(self, broker: "AsyncBroker", most: int, folder: "Path") -> None:
        """most: how many messages may be unacknowledged at a time. folder: the queue's."""
        self.received = 0
        self._broker = broker
        self._intake: Intake
        self._seen = Seen(folder / "seen")
        self._had_seen = self._seen.count
        self._doubles: Counter[bytes] = Counter()
        """What the predecessor has put since then, and we may have a copy of."""
        self._grace_ends = 0.0
        self._unsettled: dict[bytes, int] = {}
        """What was put and not acknowledged, by digest: its number."""
        self._unacknowledged: set[asyncio.Task[None]] = set()
        self._may_take = asyncio.Semaphore(most)
        self._arrived: deque[tuple[float, bytes | AckableMessage]] = deque()
        """Each with the loop's time at which it came."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._is_passing = False
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts the broker and listens; nothing is passed on yet. Raises what the broker does."""
        broker = self._broker
        broker.is_worker_process = True
        # No task runs here, so what belongs to tasks does not start.
        broker.event_handlers.clear()
        broker.middlewares.clear()
        renew_context(broker)
        listen_eagerly(broker)
        await broker.startup()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _reading: self._news.set())
        await asyncio.sleep(0)  # it begins to listen before others are told that it does

    def begin(self, intake: Intake) -> None:
        self._intake = intake
        self._doubles = self._seen.since(self._had_seen)
        self._grace_ends = asyncio.get_running_loop().time() + GRACE
        self._unsettled = self._seen.unsettled()
        self._is_passing = True

    async def run(self) -> None:
        """Passes on what arrives; returns when `finish()` was called and all of it is.

        Raises what `listen()` raised, and ListeningEnded.
        """
        assert self._reading is not None, "it is open"
        while True:
            while self._arrived:
                arrived, message = self._arrived.popleft()
                self._room.set()
                await self._pass_on(arrived, message)
            if self._reading.done():
                if not self._reading.cancelled():
                    self._reading.result()
                    raise ListeningEnded("the broker has ended listening, and nobody asked for it")
                return
            self._news.clear()
            await self._news.wait()

    async def finish(self) -> None:
        """Listens no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def close(self) -> None:
        """Messages that were not acknowledged stay so: their broker has them yet."""
        await self.finish()
        for task in self._unacknowledged:
            task.cancel()
        if self._unacknowledged:
            await asyncio.wait(self._unacknowledged)
        if self._arrived:
            logger.warning("%d messages had arrived and were not put", len(self._arrived))
        self._seen.close()
        await self._broker.shutdown()
        close_context(self._broker)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        messages = self._broker.listen()
        try:
            async for message in messages:
                self._arrived.append((loop.time(), message))
                self._news.set()
                while self._is_passing and len(self._arrived) >= ROOM:
                    self._room.clear()
                    await self._room.wait()
        finally:
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()

    async def _pass_on(self, arrived: float, message: bytes | AckableMessage) -> None:
        if isinstance(message, AckableMessage):
            await self._pass_on_ackable(arrived, message)
            return
        digest = self._seen.digest(message)
        task_id = self._id_of(message)
        if self._is_double(digest, arrived):
            logger.debug("Message %s was put by the last listener", task_id)
            return
        # It comes once. Killed now, it is lost, as with any worker of such a broker; remembered
        # after it was put, it would be run twice.
        self._seen.add(digest, settled=True)
        await self._put(task_id, message)

    async def _pass_on_ackable(self, arrived: float, message: AckableMessage) -> None:
        digest = self._seen.digest(message.data)
        task_id = self._id_of(message.data)
        is_double = self._is_double(digest, arrived)
        number = self._unsettled.get(digest)
        target: str | Ticket = task_id
        if is_double or number is not None:
            logger.debug("Message %s has been put before", task_id)
        else:
            ticket = await self._put(task_id, message.data)
            if ticket is None:
                await _acknowledge(message)
                return
            target = ticket
            # It comes again until it is acknowledged.
            number = self._unsettled[digest] = self._seen.add(digest, settled=False)
        await self._acknowledge_later(message, target, digest, number)

    def _is_double(self, digest: bytes, arrived: float) -> bool:
        """Our copy of what the predecessor has put while we were listening already."""
        if not self._doubles:
            return False
        if arrived > self._grace_ends:
            self._doubles.clear()
            return False
        if self._doubles[digest] < 1:
            return False
        self._doubles[digest] -= 1
        return True

    async def _put(self, task_id: str, data: bytes) -> Ticket | None:
        """None: the queue can never take it; who waits is told."""
        try:
            ticket = await self._intake.accept(Incoming(task_id, data))
        except QueueError as error:
            await self._refuse(task_id, error)
            return None
        self.received += 1
        return ticket

    async def _acknowledge_later(
        self, message: AckableMessage, target: str | Ticket, digest: bytes, number: int | None
    ) -> None:
        await self._may_take.acquire()
        task = asyncio.create_task(self._acknowledge_after(message, target, digest, number))
        self._unacknowledged.add(task)
        task.add_done_callback(self._acknowledged)

    async def _acknowledge_after(
        self, message: AckableMessage, target: str | Ticket, digest: bytes, number: int | None
    ) -> None:
        await self._intake.acknowledged(target)
        await _acknowledge(message)
        if number is not None:
            self._seen.settle(number)
            if self._unsettled.get(digest) == number:
                del self._unsettled[digest]

    def _acknowledged(self, task: "asyncio.Task[None]") -> None:
        self._unacknowledged.discard(task)
        self._may_take.release()
        if not task.cancelled() and task.exception() is not None:
            logger.error("A message could not be acknowledged", exc_info=task.exception())

    def _id_of(self, data: bytes) -> str:
        """The task's, or one of our own where that cannot be read: the worker puts it aside."""
        try:
            task_id = self._broker.formatter.loads(data).task_id
        except Exception as error:  # whatever a formatter raises
            logger.debug("A message of %d bytes cannot be parsed: %s", len(data), error)
            return f"{UNNAMED}{os.urandom(8).hex()}"
        fits = 0 < len(task_id.encode()) <= _LONGEST_ID
        return task_id if fits else f"{UNNAMED}{Seen.digest(data).hex()}"

    async def _refuse(self, task_id: str, error: QueueError) -> None:
        logger.error("Message %s is not run: %s", task_id, error)
        try:
            await self._broker.result_backend.set_result(task_id, error_result(error))
        except Exception:
            logger.exception("The result of task %s cannot be saved", task_id)


async def _acknowledge(message: AckableMessage) -> None:
    await maybe_awaitable(message.ack())
