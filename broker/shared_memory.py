"""SharedMemoryBroker: a taskiq broker whose queue is shared memory, and which needs no server.

The constructor opens nothing, so a broker may be made at import, before a fork, and be pickled. It
attaches to its queue in `startup()`, once per event loop. A child of a fork has nothing of its
parent's and attaches for itself when it first uses the broker.
"""

import math
import os
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskiq.abc.broker import AsyncBroker
from taskiq.acks import AckableMessage

from taskiq_supervise.broker import listening
from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.broker.attachments import Attachments
from taskiq_supervise.broker.delivery import Delivery, current_delivery
from taskiq_supervise.broker.errors import (
    BrokerNotStartedError,
    GivenBackError,
    MessageTooLargeError,
    QueueFullError,
)
from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.labels import MAX_DELIVERIES, Schedule
from taskiq_supervise.broker.payload import buffers_of, check_fits, size_of
from taskiq_supervise.broker.results import SharedMemoryResultBackend
from taskiq_supervise.broker.task import SharedMemoryDecoratedTask
from taskiq_supervise.ipc import (
    FilesFull,
    Geometry,
    LeaseLost,
    PayloadTooLarge,
    QueueFull,
    Role,
    SegmentError,
    TaskQueue,
    Ticket,
    access,
    default_base_directory,
)
from taskiq_supervise.ipc.segment import check_name

if TYPE_CHECKING:
    import sys

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.message import BrokerMessage

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self


class SharedMemoryBroker(AsyncBroker):
    """Tasks and results through shared memory, between processes on one machine.

    name: the queue; brokers with the same name and directory share it.
    directory: where queues live, instead of $TASKIQ_SUPERVISE_QUEUE_DIR or a folder in /dev/shm.
    capacity: how many tasks fit, waiting, running and with their results; rounded up to a power of
        two. Blocks for payloads grow with it.
    geometry: everything about the size. Who creates the queue decides; later ones take it as it is.
    max_deliveries: how often a task is started at most, when its workers die (the label
        `max_deliveries` says it for one task; 3 unless the supervisor says otherwise).
    kiq_timeout: seconds that `kiq()` waits for room in a full queue; None: as long as it takes (the
        label `kiq_timeout` says it for one task).
    result_ttl: seconds that a result is kept, unless its room is needed; 0: until then. One value
        per queue: who starts last decides. None: leaves it as it is, 3600 at first.
    mode, group: who may use the queue: 0o600 this user, 0o660 the users of a group (its name or
        gid; default: the process's), 0o666 everybody. Shared, it needs a directory that all of them
        name, and the same mode and group in every program: each of them trusts all the others.
    """

    takes_buffers = True
    """Tells FrameFormatter that `kick()` knows Payload and the labels."""

    def __init__(
        self,
        name: str = "default",
        *,
        directory: str | os.PathLike[str] | None = None,
        capacity: int | None = None,
        geometry: Geometry | None = None,
        max_deliveries: int | None = None,
        kiq_timeout: float | None = None,
        result_ttl: float | None = None,
        mode: int = 0o600,
        group: str | int | None = None,
    ) -> None:
        super().__init__()
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity is {capacity}, less than 1")
        if capacity is not None and geometry is not None:
            raise ValueError("give either capacity or geometry: both say how large it is")
        self.name = check_name(name)
        self.directory = Path(directory) if directory is not None else None
        if capacity is not None:
            geometry = Geometry.of_capacity(capacity)
        self.geometry = geometry
        self.max_deliveries = 0 if max_deliveries is None else _deliveries(max_deliveries)
        self.kiq_timeout = _seconds("kiq_timeout", kiq_timeout)
        self.result_ttl = _seconds("result_ttl", result_ttl)
        access.check(mode, group)
        self.mode = mode
        self.group = group
        self.guardian = 0
        """Below a supervisor: its place in the queue. The worker's runtime sets both."""
        self.worker_slot: int | None = None
        self.formatter = FrameFormatter(self)
        self.decorator_class = SharedMemoryDecoratedTask
        self._attachments = Attachments()
        self._newest_ticket: Ticket | None = None
        self.with_result_backend(SharedMemoryResultBackend())

    @property
    def base_directory(self) -> Path:
        """Where its queue is, or would be."""
        return self.directory if self.directory is not None else default_base_directory()

    @property
    def keeps_results(self) -> bool:
        """Results go into the queue: acknowledgement and result are one step."""
        backend = self.result_backend
        return isinstance(backend, SharedMemoryResultBackend) and backend.belongs_to(self)

    def with_result_backend(self, result_backend: "AsyncResultBackend[Any]") -> "Self":
        if isinstance(result_backend, SharedMemoryResultBackend):
            result_backend.bind(self)
        return super().with_result_backend(result_backend)

    async def startup(self) -> None:
        """Attaches the running loop to the queue, creating it if need be.

        May be called again, on this loop or another: the first call in a process runs taskiq's
        events, and each wants a `shutdown()` of its own. Inside a task it belongs to the task.
        Raises SegmentError when there is a queue of this name that cannot be used.
        """
        await self._attachments.discard_closed()
        first = self._attachments.begin()
        try:
            if self._attachments.here() is None:
                await self._attach(is_main=first)
            if first:
                await super().startup()
        except BaseException:
            if self._attachments.end():
                await self._attachments.close_all()
            await self._attachments.close_here()
            raise

    async def shutdown(self) -> None:
        """Undoes one `startup()` of the running loop; one too many does nothing.

        The last runs taskiq's events, which may still send tasks, and then leaves the queue.
        """
        await self._attachments.discard_closed()
        last = self._attachments.end()
        if last is None:
            return
        try:
            if last:
                await super().shutdown()
        finally:
            if last:
                await self._attachments.close_all()
            else:
                await self._attachments.close_here()

    async def kick(self, message: "BrokerMessage") -> None:
        """Waits while the queue is full. What it returned for will be run.

        Raises InvalidLabelError, QueueFullError after `kiq_timeout`, MessageTooLargeError,
        BrokerNotStartedError.
        """
        delivery = current_delivery.get()
        if delivery is not None and delivery.given_back:
            raise GivenBackError(task_id=delivery.task_id)
        attachment = await self.attached()
        if attachment is None:
            raise BrokerNotStartedError(queue=self.name, reason=self.why_not_started())
        again = delivery is not None and delivery.task_id == message.task_id
        schedule = Schedule.of(message.labels, time.time(), again=again)
        timeout = self.kiq_timeout if schedule.kiq_timeout is None else schedule.kiq_timeout
        size = size_of(message.message)
        try:
            check_fits(size, attachment.queue.queue.directory)
            self._newest_ticket = await attachment.queue.put(
                message.task_id,
                message.message,
                buffers=buffers_of(message.message),
                priority=schedule.priority,
                due=schedule.due,
                expires=schedule.expires,
                max_deliveries=schedule.max_deliveries or self.max_deliveries,
                timeout=None if timeout == math.inf else timeout,
            )
        except QueueFull as error:
            reason = str(error.__cause__) if isinstance(error.__cause__, FilesFull) else ""
            raise QueueFullError(queue=self.name, timeout=timeout, reason=reason) from error
        except PayloadTooLarge as error:
            raise MessageTooLargeError(
                task=message.task_name, size=size, reason=str(error)
            ) from error

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Messages for any receiver of taskiq (`taskiq worker`, `run_receiver_task`).

        It cannot see when a task begins, so a message counts as started when it is handed over.
        """
        acknowledged = listening.Acknowledged()
        try:
            while True:
                acknowledged.finish_own()
                delivery = await self._next_delivery()
                try:
                    delivery.start()
                except LeaseLost as error:
                    delivery.lost(error)
                    continue
                ack = partial(listening.acknowledge, self, delivery, acknowledged)
                yield AckableMessage(data=delivery.payload, ack=ack)
        finally:
            acknowledged.finish_own()

    async def _next_delivery(self) -> Delivery:
        attachment = await self.attached()
        if attachment is None:
            raise BrokerNotStartedError(queue=self.name, reason=self.why_not_started())
        return attachment.take(await attachment.claim(), keep=self.keeps_results)

    async def attached(self) -> Attachment | None:
        """The queue for this process and loop; attached anew after a fork, or in a new loop."""
        attachment = self._attachments.here()
        if attachment is not None:
            return attachment
        await self._attachments.discard_closed()
        return await self._attach(is_main=True) if self._attachments.may_adopt else None

    def why_not_started(self) -> str:
        if not self._attachments.elsewhere:
            return "await broker.startup() first"
        return (
            "the broker was started on another event loop, which still runs; "
            "await broker.startup() on this one too"
        )

    def ticket_of(self, task_id: str) -> Ticket | None:
        """What the queue returned for the message that was sent last, if it has this id."""
        ticket = self._newest_ticket
        return ticket if ticket is not None and ticket.task_id == task_id else None

    async def _attach(self, *, is_main: bool) -> Attachment:
        """is_main: the loop on which a worker takes messages; its others only send and wait."""
        role = Role.WORKER if self.is_worker_process and is_main else Role.CLIENT
        try:
            queue = TaskQueue.open(
                self.name,
                self.directory,
                geometry=self.geometry,
                role=role,
                guardian=self.guardian,
                tag=0 if self.worker_slot is None else self.worker_slot + 1,
                mode=self.mode,
                group=self.group,
            )
        except SegmentError as error:
            raise error from None  # what the system said is part of it
        attachment = Attachment(queue, role)
        try:
            await attachment.start()
            if self.result_ttl is not None:
                queue.result_ttl = self.result_ttl
        except BaseException:
            queue.close()
            raise
        self._attachments.put(attachment)
        return attachment

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_newest_ticket": None}


def _deliveries(value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_DELIVERIES:
        raise ValueError(f"max_deliveries is {value!r}, not a number from 1 to {MAX_DELIVERIES}")
    return number


def _seconds(name: str, value: float | None) -> float | None:
    if value is None or 0 <= value < math.inf:
        return value
    raise ValueError(f"{name} is {value!r}, not a number of seconds from 0 on, or None")
