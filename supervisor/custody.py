"""The supervisor's part in the application's queue, when it has one in shared memory.

As a participant with the role of supervisor it is the queue's custodian (the one that repairs after
deaths) and the guardian of its workers: it reaps them, so it knows before anybody else that one
died, and how. An application on somebody else's broker has no such queue; then everything here
answers for nothing held, and redelivery is that broker's affair.

Where one process listens for all workers, the queue is the one that it fills, and what it listens
to is held as well, so that no second supervisor of this host listens there.
"""

import logging
import os
from typing import Any

from taskiq_supervise.ipc import (
    AsyncTaskQueue,
    Burial,
    DeathCause,
    Geometry,
    QueueBusy,
    QueueError,
    Role,
    SegmentError,
    TaskQueue,
)
from taskiq_supervise.supervisor.core.model import EXIT_FAILED, EXIT_REFUSED
from taskiq_supervise.supervisor.core.transport import Transport
from taskiq_supervise.supervisor.endpoints import Endpoints, EndpointTaken

logger = logging.getLogger("taskiq_supervise.custody")


class CustodyRefused(Exception):
    """The queue cannot be taken care of; `exit_code` is what that means for a cold start."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Custody:
    """Over one queue, or over none."""

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self._queue: AsyncTaskQueue | None = None
        self._endpoints = Endpoints()
        self._max_deliveries = 0
        self._explained: set[int] = set()
        self._overdue: dict[int, list[str]] = {}
        """Without a queue of ours, what a listener has to know of the dead: see obituary()."""

    @property
    def has_queue(self) -> bool:
        """The application's queue is one of ours."""
        return self._queue is not None

    @property
    def participant(self) -> int:
        """The guardian that workers name when they join the queue; 0 without a queue."""
        return 0 if self._queue is None else self._queue.queue.participant

    async def open(self, transport: Transport, label: str, max_deliveries: int) -> None:
        """Take part in the application's queue. Again with the same queue: nothing to do.

        Raises CustodyRefused.
        """
        if self.transport is not None and not _follows(transport, self.transport):
            raise CustodyRefused(
                f"the application now uses {_describe(transport)} instead of "
                f"{_describe(self.transport)}; stop and start the supervisor to follow it",
                EXIT_FAILED,
            )
        if transport.listener is not None:
            try:
                await self._endpoints.take(transport.listener.endpoints, label)
            except EndpointTaken as error:
                raise CustodyRefused(f"{error}; stop it first", EXIT_REFUSED) from error
        if transport.has_queue and self._queue is None:
            self._queue = await _queue(transport, label, max_deliveries)
        self._max_deliveries = max_deliveries
        if self.transport is None:
            self.transport = transport

    async def keep(self, transport: Transport) -> None:
        """Only what this one needs, of those that were opened: a reload is over."""
        self.transport = transport
        self._endpoints.keep(transport.listener.endpoints if transport.listener else ())
        if not transport.has_queue:
            await self._close_queue()

    def explain(self, pid: int) -> None:
        """The death of this process is planned: what it runs is not blamed for it."""
        if self._queue is not None:
            self._queue.queue.explain(pid)
        else:
            self._explained.add(pid)

    def time_out(self, pid: int, task_id: str) -> bool:
        """Once this process is dead, this task of its ends with an error, and is not run again.

        False: it has ended meanwhile.
        """
        if self._queue is not None:
            return self._queue.queue.time_out(pid, task_id)
        self._overdue.setdefault(pid, []).append(task_id)
        return True

    def set_aside(self, pid: int) -> None:
        """It cannot answer its doorbell; what it was rung for is passed on."""
        if self._queue is not None:
            self._queue.queue.set_aside(pid)

    def call_back(self, pid: int) -> None:
        """It can again."""
        if self._queue is not None:
            self._queue.queue.call_back(pid)

    def bury(self, pid: int, cause: DeathCause) -> Burial:
        """Give back what a reaped worker held."""
        if self._queue is None:
            return Burial()
        try:
            return self._queue.queue.bury(pid, cause)
        except QueueError:
            # The custodian finds the death by itself too; only the cause of it is lost.
            logger.exception("could not give back what pid=%d held", pid)
            return Burial()

    def obituary(self, pid: int, cause: DeathCause) -> dict[str, Any]:
        """What listeners are told of a reaped process; one without a segment buries it itself."""
        explained = pid in self._explained
        self._explained.discard(pid)
        return {
            "op": "gone",
            "pid": pid,
            "record": cause.packed(),
            "explained": explained,
            "overdue": self._overdue.pop(pid, []),
            "max_deliveries": self._max_deliveries,
        }

    def stats(self) -> dict[str, int] | None:
        if self._queue is None:
            return None
        stats = self._queue.queue.stats()
        return {
            "ready": stats.ready,
            "leased": stats.leased + stats.running,
            "delayed": stats.delayed,
            "dead": stats.dead,
            "capacity": stats.capacity,
            "running": stats.running,
            "done": stats.done,
            "free": stats.free,
        }

    async def close(self) -> None:
        self._endpoints.close()
        await self._close_queue()

    async def _close_queue(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            await queue.close()


async def _queue(transport: Transport, label: str, max_deliveries: int) -> AsyncTaskQueue:
    """Raises CustodyRefused."""
    try:
        return await _supervise(transport, label, max_deliveries)
    except QueueBusy as error:
        by = f"instance {error.label!r}, pid {error.pid}; stop it, or use another queue"
        if error.pid == os.getpid():
            by = "another pool of this instance; give that one the workers of both"
        raise CustodyRefused(
            f"queue {transport.name!r} is already supervised by {by}", EXIT_REFUSED
        ) from error
    except SegmentError as error:
        hint = "; --transport zmq does without shared memory" if transport.listener else ""
        raise CustodyRefused(f"{error}{hint}", EXIT_FAILED) from error
    except QueueError as error:
        raise CustodyRefused(str(error), EXIT_FAILED) from error


async def _supervise(transport: Transport, label: str, max_deliveries: int) -> AsyncTaskQueue:
    queue = TaskQueue.open(
        transport.name,
        transport.directory or None,
        geometry=_geometry(transport.geometry),
        role=Role.SUPERVISOR,
        mode=transport.mode,
        group=transport.group,
    )
    try:
        queue.become_supervisor(label)
        queue.set_max_deliveries(max_deliveries)
        waiting = AsyncTaskQueue(queue)
        await waiting.start()
    except BaseException:
        queue.close()
        raise
    return waiting


def _geometry(described: Any) -> Geometry | None:
    if not described:
        return None
    blocks = tuple((int(size), int(count)) for size, count in described["blocks"])
    return Geometry(**{**described, "blocks": blocks})


def _follows(new: Transport, old: Transport) -> bool:
    """A reload can get from one to the other: the same queue, or the same broker, which workers
    may listen to by way of a listener or without one."""
    if new.kind != old.kind:
        return new.broker_class is not None and new.broker_class == old.broker_class
    return (new.name, new.directory, _store(new)) == (old.name, old.directory, _store(old))


def _store(transport: Transport) -> str | None:
    return None if transport.listener is None else transport.listener.store


def _describe(transport: Transport) -> str:
    if transport.kind == "broker":
        return f"the broker {transport.name}"
    if transport.listener is not None:
        return f"the broker {transport.listener.cls} by way of {transport.name!r}"
    return f"the queue {transport.name!r} in {transport.directory}"
