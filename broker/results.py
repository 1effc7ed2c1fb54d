"""The result backend of SharedMemoryBroker: results live in the slots of the tasks themselves.

Saving a result is the acknowledgement of its message: one atomic step, so there is no moment in
which a task is acknowledged without a result, or has one and runs again. Waiting is woken, not
polled.
"""

import asyncio
import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq.result import TaskiqResult

from taskiq_supervise.broker import outcomes
from taskiq_supervise.broker.delivery import ROOM_PATIENCE, Delivery, current_delivery
from taskiq_supervise.broker.errors import (
    ForeignResultError,
    QueueNotStartedError,
    ResultExpiredError,
    ResultNotReadyError,
    ResultRoomError,
    ResultTooLargeError,
    UnsuitableBrokerError,
)
from taskiq_supervise.broker.payload import size_of
from taskiq_supervise.broker.rule import class_name
from taskiq_supervise.ipc import (
    Outcome,
    OutcomeKind,
    PayloadTooLarge,
    QueueFull,
    Ticket,
    UnknownTask,
)

if TYPE_CHECKING:
    from taskiq_supervise.broker.attachment import Attachment
    from taskiq_supervise.broker.queue_broker import QueueBroker

_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq_supervise.broker")


class QueueResultBackend(AsyncResultBackend[_ReturnType]):
    """What our result backends share: outcomes of the queue become results, and wake who waits."""

    def __init__(self) -> None:
        self._broker: QueueBroker[Any] | None = None

    @property
    def broker(self) -> "QueueBroker[Any]":
        """Raises UnsuitableBrokerError unless it belongs to one."""
        if self._broker is None:
            raise UnsuitableBrokerError(broker="this broker", reason=self._why_not())
        return self._broker

    def bind(self, broker: "QueueBroker[Any]") -> None:
        """Makes the queue of this broker the home of the results. The broker calls it."""
        if self._broker is not None and self._broker is not broker:
            raise UnsuitableBrokerError(
                broker=class_name(broker),
                reason=f"this {type(self).__name__} belongs to another broker already",
            )
        self._broker = broker

    def belongs_to(self, broker: object) -> bool:
        return self._broker is broker

    async def startup(self) -> None:
        _ = self.broker

    @abstractmethod
    def _why_not(self) -> str:
        """With whom it works, and why only with them."""

    @abstractmethod
    async def outcome(self, task_id: str) -> Outcome | None:
        """How the task ended, None if it has not. Raises ResultExpiredError for an unknown id."""

    @abstractmethod
    async def when_ended(self, target: str | Ticket, timeout: float | None) -> Outcome:
        """How the task ended, once it has. Raises TimeoutError (asyncio's), UnknownTask."""

    async def is_result_ready(self, task_id: str) -> bool:
        """An instant answer. Raises ResultExpiredError for an id that is nowhere in the queue."""
        outcome = await self.outcome(task_id)
        return outcome is not None and outcome.kind is not OutcomeKind.NO_RESULT

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[_ReturnType]:
        """The result, from any process. Raises ResultNotReadyError or ResultExpiredError."""
        outcome = await self.outcome(task_id)
        if outcome is None or outcome.kind is OutcomeKind.NO_RESULT:
            raise ResultNotReadyError(task_id=task_id)
        return outcomes.decode(outcome, None, self.broker.serializer)

    async def wait(
        self, target: str | Ticket, timeout: float | None = None, task_name: str | None = None
    ) -> TaskiqResult[_ReturnType]:
        """The result as soon as it is there; a wake-up, not a poll.

        target: a task id, or what the queue returned for the message (saves the search for the id).
        timeout: seconds; None, 0 and less mean without end.
        Raises TaskiqResultTimeoutError or ResultExpiredError.
        """
        waiter = current_delivery.get()
        if waiter is not None:
            waiter.begin_wait()
        try:
            outcome = await self.when_ended(target, timeout if timeout and timeout > 0 else None)
        except (TimeoutError, asyncio.TimeoutError):
            raise TaskiqResultTimeoutError(timeout=timeout) from None
        except UnknownTask:
            task_id = target if isinstance(target, str) else target.task_id
            raise ResultExpiredError(task_id=task_id, queue=self.broker.name) from None
        finally:
            if waiter is not None:
                waiter.end_wait()
        return outcomes.decode(outcome, task_name, self.broker.serializer)


class SharedMemoryResultBackend(QueueResultBackend[_ReturnType]):
    """What SharedMemoryBroker uses unless it is given another; of no use with other brokers."""

    async def set_result(self, task_id: str, result: TaskiqResult[_ReturnType]) -> None:
        """Ends the task that this process holds under this id, unless it acknowledges by itself.

        Raises ForeignResultError when this process holds no such task.
        """
        delivery = current_delivery.get()
        if delivery is None or delivery.task_id != task_id:
            # A receiver of taskiq's own: the message was taken by `listen()`.
            delivery = (await self._attachment()).held_as(task_id)
        if delivery is None:
            raise ForeignResultError(task_id=task_id)
        await complete(delivery, result, self.broker)

    async def outcome(self, task_id: str) -> Outcome | None:
        try:
            return await (await self._attachment()).queue.look(task_id)
        except UnknownTask:
            raise ResultExpiredError(task_id=task_id, queue=self.broker.name) from None

    async def when_ended(self, target: str | Ticket, timeout: float | None) -> Outcome:
        return await (await self._attachment()).queue.wait(target, timeout)

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        (await self._attachment()).progress.set(task_id, progress)

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        """The progress of a task that runs; None before it said any, and after its end."""
        return (await self._attachment()).progress.get(task_id)

    def _why_not(self) -> str:
        return (
            "SharedMemoryResultBackend keeps results in the slots of a shared-memory queue and "
            "works with SharedMemoryBroker only; choose another result backend"
        )

    async def _attachment(self) -> "Attachment":
        broker = self.broker
        attachment: Attachment | None = await broker.attached()
        if attachment is None:
            raise QueueNotStartedError(queue=broker.name, reason=broker.why_not_started())
        return attachment


async def complete(
    delivery: Delivery, result: TaskiqResult[Any], broker: "QueueBroker[Any]"
) -> None:
    """Ends a message with this result, or with the error that there is no place for it.

    By way of the delivery alone, so in whatever state the broker is meanwhile.
    """
    task_id = delivery.task_id
    data = outcomes.encode(task_id, result, broker.serializer)
    error: ResultTooLargeError | ResultRoomError
    try:
        await delivery.complete(data)
    except PayloadTooLarge as reason:
        error = ResultTooLargeError(task_id=task_id, size=size_of(data), reason=str(reason))
    except QueueFull:
        error = ResultRoomError(
            task_id=task_id, size=size_of(data), queue=broker.name, timeout=ROOM_PATIENCE
        )
    else:
        return
    logger.error("%s", error)
    failed = outcomes.error_result(error, like=result)
    await delivery.complete(outcomes.encode(task_id, failed, broker.serializer))
