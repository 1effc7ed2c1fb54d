"""Task objects that are woken when their result is there.

taskiq's kicker builds its own task objects, whose `wait_result()` asks every 0.2 s. The broker's
decorator class leads to a kicker that returns ours, with everything else left to taskiq's.
"""

import asyncio
import logging
import time
from copy import copy
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pydantic import PydanticUserError
from taskiq.abc.broker import AsyncBroker
from taskiq.compat import parse_obj_as
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import (
    ResultBackendError,
    ResultGetError,
    SendTaskError,
    TaskiqResultTimeoutError,
)
from taskiq.kicker import AsyncKicker
from taskiq.task import AsyncTaskiqTask

from taskiq_supervise.broker.errors import ResultExpiredError
from taskiq_supervise.broker.outcomes import decode
from taskiq_supervise.broker.pickling import CloudpickleSerializer
from taskiq_supervise.broker.results import QueueResultBackend

if TYPE_CHECKING:
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

    from taskiq_supervise.broker.queue_broker import QueueBroker
    from taskiq_supervise.ipc import Ticket

_Params = ParamSpec("_Params")
_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq_supervise.broker")


class QueueTask(AsyncTaskiqTask[_ReturnType]):
    """A task that was sent to one of our brokers."""

    def __init__(
        self,
        task_id: str,
        broker: "QueueBroker[Any]",
        return_type: type[_ReturnType] | None = None,
        *,
        task_name: str | None = None,
        ticket: "Ticket | None" = None,
    ) -> None:
        backend: AsyncResultBackend[Any] = broker.result_backend
        super().__init__(task_id, backend, return_type)
        self.task_name = task_name
        self._broker = broker
        self._ticket = ticket

    async def get_result(self, with_logs: bool = False) -> "TaskiqResult[_ReturnType]":
        """The result of a task that has ended. Raises ResultGetError, our own say why."""
        try:
            result = await self.result_backend.get_result(self.task_id, with_logs=with_logs)
        except ResultBackendError:
            raise
        except Exception as error:
            raise ResultGetError from error
        return self._typed(result)

    async def wait_result(
        self, check_interval: float = 0.2, timeout: float = -1.0, with_logs: bool = False
    ) -> "TaskiqResult[_ReturnType]":
        """Waits for the result and is woken when it is there.

        check_interval: only for a result backend that is not ours, which has to be asked.
        timeout: seconds; 0 and less mean without end.
        Raises TaskiqResultTimeoutError, or ResultExpiredError when the result is gone already.
        """
        backend = self.result_backend
        if isinstance(backend, QueueResultBackend):
            result = await backend.wait(self._ticket or self.task_id, timeout, self.task_name)
            return self._typed(result)
        return await self._poll(check_interval, timeout, with_logs)

    async def _poll(
        self, check_interval: float, timeout: float, with_logs: bool
    ) -> "TaskiqResult[_ReturnType]":
        """As taskiq does; but a task whose workers died has no result there, and ends here."""
        deadline = time.monotonic() + timeout
        while not await self.is_ready():
            failed = await self._failure()
            if failed is not None:
                return failed
            if timeout > 0 and time.monotonic() > deadline:
                raise TaskiqResultTimeoutError(timeout=timeout)
            await asyncio.sleep(check_interval)
        return await self.get_result(with_logs=with_logs)

    async def _failure(self) -> "TaskiqResult[_ReturnType] | None":
        try:
            outcome = await self._broker.own_results().outcome(self.task_id)
        except ResultExpiredError:  # acknowledged: the other backend has the result, or will
            return None
        return None if outcome is None else decode(outcome, self.task_name, self._broker.serializer)

    def _typed(self, result: "TaskiqResult[_ReturnType]") -> "TaskiqResult[_ReturnType]":
        if self.return_type is None or result.is_err:
            return result
        try:
            result.return_value = parse_obj_as(self.return_type, result.return_value)
        except PydanticUserError:
            # A class that pydantic does not know, an array for example: nothing to make of it.
            return result
        except ValueError:
            logger.warning(
                "The result of task %s is not a %s; it is left as it is",
                self.task_id,
                self.return_type,
            )
        return result


class QueueKicker(AsyncKicker[_Params, _ReturnType]):
    """taskiq's kicker, with our task object at its end."""

    def _prepare_message(self, *args: Any, **kwargs: Any) -> "TaskiqMessage":
        if not isinstance(self.broker.serializer, CloudpickleSerializer):
            return super()._prepare_message(*args, **kwargs)
        # taskiq makes dicts of dataclasses and models, for JSON; here they travel as they are.
        message = super()._prepare_message()
        message.args, message.kwargs = list(args), kwargs
        return message

    async def kiq(self, *args: _Params.args, **kwargs: _Params.kwargs) -> Any:
        """Sends the call to the queue. Raises SendTaskError, our own say why."""
        from taskiq_supervise.broker.queue_broker import QueueBroker

        try:
            task = await super().kiq(*args, **kwargs)
        except SendTaskError as error:
            if isinstance(error.__cause__, SendTaskError):
                raise error.__cause__ from error.__cause__.__cause__
            raise
        broker = self.broker
        if not isinstance(broker, QueueBroker):
            return task
        return QueueTask(
            task.task_id,
            broker,
            self.return_type,
            task_name=self.task_name,
            ticket=broker.ticket_of(task.task_id),
        )


class QueueDecoratedTask(AsyncTaskiqDecoratedTask[_Params, _ReturnType]):
    """What `@broker.task` makes of a function."""

    def kicker(self) -> AsyncKicker[_Params, _ReturnType]:
        return QueueKicker(
            task_name=self.task_name,
            broker=self.broker,
            labels=copy(self.labels),
            return_type=self.return_type,
        )


async def wait_result(
    of: "AsyncBroker | AsyncResultBackend[Any]", task_id: str, timeout: float | None = None
) -> "TaskiqResult[Any]":
    """The result of a task known by its id only: a shared task, or one sent by another process.

    Woken where the results are in a queue of ours; asked for every 0.2 s elsewhere.
    Raises TaskiqResultTimeoutError, ResultGetError.
    """
    backend = of.result_backend if isinstance(of, AsyncBroker) else of
    if isinstance(backend, QueueResultBackend):
        return await backend.wait(task_id, timeout)
    task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(task_id, backend)
    return await task.wait_result(timeout=timeout if timeout is not None else -1.0)
