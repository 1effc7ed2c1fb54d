"""The result backend of ZeroMQBroker: results stay in the pool's queue and are asked for there.

A worker saves them there as with SharedMemoryBroker, in one step with the acknowledgement. A client
asks the listener over the connection on which it sends its tasks, and is told when one has ended.
"""

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

from taskiq.depends.progress_tracker import TaskProgress
from taskiq.result import TaskiqResult

from taskiq_supervise.broker.errors import (
    QueueNotStartedError,
    ResultExpiredError,
    ResultUnreachableError,
    UnsuitableBrokerError,
)
from taskiq_supervise.broker.results import QueueResultBackend
from taskiq_supervise.broker.rule import class_name
from taskiq_supervise.broker.zeromq.connection import (
    Connection,
    ConnectionClosed,
    ConnectionRefused,
)
from taskiq_supervise.broker.zeromq.protocol import (
    AskProgress,
    Code,
    Ended,
    Failed,
    Look,
    Progress,
    Wait,
)
from taskiq_supervise.ipc import Outcome, Ticket, UnknownTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq_supervise.broker.zeromq.broker import ZeroMQBroker
    from taskiq_supervise.broker.zeromq.questions import Answer, Question

_ReturnType = TypeVar("_ReturnType")

LOOK_PATIENCE = 10.0
"""Seconds that a question has that is answered at once, a restart of the supervisor included."""


class ZeroMQResultBackend(QueueResultBackend[_ReturnType]):
    """What ZeroMQBroker uses unless it is given another; of no use with other brokers."""

    @property
    def _own(self) -> "ZeroMQBroker":
        return cast("ZeroMQBroker", self.broker)

    @property
    def _feed(self) -> "QueueResultBackend[Any] | None":
        """In a worker: that of the queue that the worker takes its tasks from."""
        feed = self._own.feed
        return None if feed is None else feed.own_results()

    async def set_result(self, task_id: str, result: TaskiqResult[_ReturnType]) -> None:
        """Ends the task that this process holds under this id.

        Raises ForeignResultError when it holds none, UnsuitableBrokerError in no worker of ours.
        """
        await self._worker_feed().set_result(task_id, result)

    async def outcome(self, task_id: str) -> Outcome | None:
        if self._feed is not None:
            return await self._feed.outcome(task_id)
        answer = await self._ask(task_id, lambda number: Look(number, task_id), LOOK_PATIENCE)
        if isinstance(answer, Failed) and answer.code == Code.NOT_READY:
            return None
        try:
            return self._ended(task_id, answer)
        except UnknownTask:
            raise ResultExpiredError(task_id=task_id, queue=self._own.name) from None

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        await self._worker_feed().set_progress(task_id, progress)

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        """The progress of a task that runs; None before it said any, and after its end."""
        if self._feed is not None:
            return await self._feed.get_progress(task_id)
        answer = await self._ask(
            task_id, lambda number: AskProgress(number, task_id), LOOK_PATIENCE
        )
        if not isinstance(answer, Progress) or answer.state is None:
            return None
        return TaskProgress(state=answer.state, meta=answer.meta)

    async def when_ended(self, target: str | Ticket, timeout: float | None) -> Outcome:
        task_id = target if isinstance(target, str) else target.task_id
        if self._feed is not None:
            return await self._feed.when_ended(target, timeout)
        connection = await self._connection()
        try:
            answer = await connection.ask(lambda number: Wait(number, target), timeout)
        except (ConnectionRefused, ConnectionClosed) as error:
            raise self._unreachable(task_id, str(error)) from None
        return self._ended(task_id, answer)

    def _ended(self, task_id: str, answer: "Answer") -> Outcome:
        if isinstance(answer, Ended):
            return answer.outcome
        if isinstance(answer, Failed) and answer.code == Code.UNKNOWN:
            raise UnknownTask(answer.text)
        text = answer.text if isinstance(answer, Failed) else f"the answer is {answer!r}"
        raise self._unreachable(task_id, text)

    async def _ask(
        self, task_id: str, question: "Callable[[int], Question]", timeout: float
    ) -> "Answer":
        """Raises ResultUnreachableError."""
        connection = await self._connection()
        try:
            return await connection.ask(question, timeout)
        except (TimeoutError, asyncio.TimeoutError):
            reason = connection.problem or f"no answer for {timeout:g} s"
            raise self._unreachable(task_id, reason) from None
        except (ConnectionRefused, ConnectionClosed) as error:
            raise self._unreachable(task_id, str(error)) from None

    def _worker_feed(self) -> "QueueResultBackend[Any]":
        feed = self._feed
        if feed is None:
            raise UnsuitableBrokerError(
                broker=class_name(self._own),
                reason="results are saved by the workers of taskiq-supervise only",
            )
        return feed

    def _unreachable(self, task_id: str, reason: str) -> ResultUnreachableError:
        return ResultUnreachableError(task_id=task_id, endpoint=self._own.name, reason=reason)

    async def _connection(self) -> Connection:
        broker = self._own
        connection = await broker.connection()
        if connection is None:
            raise QueueNotStartedError(queue=broker.name, reason=broker.why_not_started())
        return connection

    def _why_not(self) -> str:
        return (
            "ZeroMQResultBackend asks the supervisor of a ZeroMQBroker for results and works with "
            "taskiq_supervise.ZeroMQBroker only; choose another result backend"
        )
