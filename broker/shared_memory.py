"""SharedMemoryBroker: a taskiq broker whose queue is shared memory, and which needs no server."""

import math
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskiq.acks import AckableMessage

from taskiq_supervise.broker import arguments, listening
from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.broker.delivery import Delivery, current_delivery
from taskiq_supervise.broker.errors import (
    BrokerNotStartedError,
    GivenBackError,
    MessageTooLargeError,
    QueueFullError,
)
from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.payload import buffers_of, check_fits, size_of
from taskiq_supervise.broker.queue_broker import QueueBroker
from taskiq_supervise.broker.results import SharedMemoryResultBackend
from taskiq_supervise.ipc import (
    AsyncTaskQueue,
    FilesFull,
    Geometry,
    PayloadTooLarge,
    QueueFull,
    Role,
    SegmentError,
    TaskQueue,
    access,
    default_base_directory,
)
from taskiq_supervise.ipc.segment import check_name

if TYPE_CHECKING:
    from taskiq.message import BrokerMessage


class SharedMemoryBroker(QueueBroker[Attachment]):
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
        self.max_deliveries = arguments.deliveries(max_deliveries)
        self.kiq_timeout = arguments.seconds("kiq_timeout", kiq_timeout)
        self.result_ttl = arguments.seconds("result_ttl", result_ttl)
        access.check(mode, group)
        self.mode = mode
        self.group = group
        self.guardian = 0
        """Below a supervisor: its place in the queue. The worker's runtime sets both."""
        self.worker_slot: int | None = None
        self.with_result_backend(SharedMemoryResultBackend())

    @property
    def base_directory(self) -> Path:
        """Where its queue is, or would be."""
        return self.directory if self.directory is not None else default_base_directory()

    def _new_results(self) -> SharedMemoryResultBackend[Any]:
        return SharedMemoryResultBackend()

    async def startup(self) -> None:
        """Attaches the running loop to the queue, creating it if need be.

        May be called again, see QueueBroker. Raises SegmentError when there is a queue of this name
        that cannot be used.
        """
        await super().startup()

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
            check_fits(size, attachment.queue.directory)
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

    def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for any receiver of taskiq (`taskiq worker`, `run_receiver_task`)."""
        return listening.messages(self, self)

    async def next_delivery(self, *, keep: bool) -> Delivery:
        """Takes a message. keep: its result belongs into the queue."""
        attachment = await self.attached()
        if attachment is None:
            raise BrokerNotStartedError(queue=self.name, reason=self.why_not_started())
        return attachment.take(await attachment.claim(), keep=keep)

    async def _attach(self, *, is_main: bool) -> Attachment:
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
        attachment = Attachment(AsyncTaskQueue(queue), role)
        try:
            await attachment.start()
            if self.result_ttl is not None:
                queue.result_ttl = self.result_ttl
        except BaseException:
            queue.close()
            raise
        return attachment
