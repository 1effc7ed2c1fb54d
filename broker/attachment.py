"""The queue as one process uses it on one event loop, from the broker's startup to its shutdown.

Kept apart from the broker, which is made at import, forked and pickled: what belongs to a process
and to a loop is all in here, and here only.
"""

import asyncio
import logging
import os
from collections.abc import Callable

from taskiq_supervise.broker.delivery import Delivery
from taskiq_supervise.broker.progress import ProgressFolder
from taskiq_supervise.broker.queue import Held, Queue
from taskiq_supervise.ipc import Role

logger = logging.getLogger("taskiq_supervise.broker")


def _nothing() -> None:
    return None


class Attachment:
    """An open queue, and the messages that this process has taken from it and not ended."""

    def __init__(self, queue: Queue, role: Role) -> None:
        self.queue = queue
        self.role = role
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.held: dict[Delivery, None] = {}
        """In the order in which they were taken."""
        self._claiming = asyncio.Lock()
        self.progress = ProgressFolder(queue.directory / "progress")

    async def start(self) -> None:
        await self.queue.start()
        if self.role is Role.WORKER:
            self.progress.sweep(self.queue.is_over)

    async def claim(self) -> Held:
        """The next message; several receivers on one broker take turns."""
        async with self._claiming:
            return await self.queue.claim()

    def take(
        self, lease: Held, *, keep: bool, on_change: Callable[[], None] = _nothing
    ) -> Delivery:
        """keep: its result belongs into the queue. on_change: its task begins or ends to wait."""
        delivery = Delivery(lease, self.queue, self._ended, on_change)
        delivery.keep = keep
        self.held[delivery] = None
        return delivery

    def held_as(self, task_id: str) -> Delivery | None:
        """The first message with this id that was taken and has no result yet."""
        for delivery in self.held:
            if delivery.task_id == task_id and delivery.kept_back is None:
                return delivery
        return None

    def explain_end(self) -> None:
        """Says that this process is about to end: what it runs goes back without a fault."""
        self.queue.explain_end()

    async def close(self) -> None:
        """Gives back what is held, except what still runs: that goes back when we are gone."""
        running = [each for each in self.held if each.started and not each.finished]
        for delivery in list(self.held):
            if delivery not in running and not delivery.acked:
                delivery.release()
        if running:
            # Released now, a task would run twice at once. Our end gives it back.
            self.explain_end()
            ids = ", ".join(delivery.task_id for delivery in running[:5])
            logger.warning(
                "%d tasks still run (%s%s); the queue gets them back when this process ends",
                len(running),
                ids,
                ", …" if len(running) > 5 else "",
            )
            return
        if self.loop.is_closed():
            self.queue.abandon()
        else:
            await self.queue.close()

    def _ended(self, delivery: Delivery) -> None:
        self.held.pop(delivery, None)
        if delivery.completed:
            self.progress.remove(delivery.task_id)
