"""taskiq's `run_task`, watched: what runs is on the board, has a time, and can be given back."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from taskiq.acks import AckController
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver
from taskiq.result import TaskiqResult

from taskiq_supervise.broker.delivery import Delivery, current_delivery
from taskiq_supervise.broker.errors import InvalidLabelError, TaskTimeoutError
from taskiq_supervise.broker.labels import hard_timeout
from taskiq_supervise.broker.listening import keeps_results
from taskiq_supervise.broker.outcomes import error_result
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.ipc import BoardWriter
from taskiq_supervise.worker.deadlines import Deadline, Deadlines
from taskiq_supervise.worker.execution import Execution, forget, park
from taskiq_supervise.worker.hints import Hints
from taskiq_supervise.worker.log_style import current_task
from taskiq_supervise.worker.process_pool import ProcessPool

logger = logging.getLogger("taskiq_supervise.worker")


class TrackingReceiver(Receiver):
    """Takes the same arguments as taskiq's receiver. Its attributes are set before it listens."""

    feed: SharedMemoryBroker | None
    """Where its messages come from; None: from the broker itself, which has another queue."""
    board: BoardWriter | None = None
    """Where others see what runs here."""
    deadlines: Deadlines | None = None
    """On the same board; None: no task has a hard time limit."""
    task_timeout: float | None = None
    """Seconds, for tasks that say nothing else."""
    on_end: Callable[[], None] | None = None
    """Called after each run of a task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.feed = self.broker if isinstance(self.broker, SharedMemoryBroker) else None
        self._executions: set[Execution] = set()
        self._hints = Hints()
        self._timing_out: set[asyncio.Task[None]] = set()

    def _prepare_task(self, name: str, handler: Callable[..., Any]) -> None:
        super()._prepare_task(name, handler)
        graph = self.dependency_graphs.get(name)
        if graph is not None and graph.is_empty():
            # Nothing would be resolved with it, either; to find that out took microseconds per run.
            del self.dependency_graphs[name]

    async def run_task(
        self,
        target: Callable[..., Any],
        message: TaskiqMessage,
        ack_controller: AckController | None = None,
    ) -> TaskiqResult[Any]:
        """taskiq's; raises what it raises."""
        if message.task_name not in self.known_tasks:
            # Before `target` is wrapped: taskiq reads signature and dependencies from it.
            self._prepare_task(message.task_name, target)
        self._hints.keep_parsable(self.task_hints, message.task_name)
        before = current_task.get()
        current_task.set({"task_id": message.task_id, "task_name": message.task_name})
        delivery = current_delivery.get() or await self._listened(message.task_id)
        board, entry, failed = self.board, -1, True
        if board is not None:
            attempt = delivery.lease.attempt if delivery is not None else 1
            entry = board.begin(message.task_id, message.task_name, attempt)
        execution = Execution(target, delivery)
        deadline = self._limit(execution, entry, message, ack_controller)
        self._executions.add(execution)
        running = super().run_task(execution.target, message, ack_controller)
        frame = getattr(running, "cr_frame", None)
        try:
            result = await running
            failed = result.is_err and not isinstance(result.error, NoResultError)
            if execution.is_over:
                await park()
            return result
        finally:
            self._executions.discard(execution)
            forget(self.broker, message, frame)
            if deadline is not None:
                deadline.end()
            if board is not None:
                board.end(entry, failed=failed)
            if self.on_end is not None:
                self.on_end()
            current_task.set(before)

    async def _listened(self, task_id: str) -> Delivery | None:
        """The delivery of a message that came to a receiver with its own ways, by `listen()`."""
        if self.feed is None:
            return None
        attachment = await self.feed.attached()
        delivery = None if attachment is None else attachment.held_as(task_id)
        current_delivery.set(delivery)
        return delivery

    # --- hard time limits ------------------------------------------------------------------------

    def _limit(
        self,
        execution: Execution,
        entry: int,
        message: TaskiqMessage,
        ack_controller: AckController | None,
    ) -> Deadline | None:
        """Sets the task's time, to count from when its function's turn comes."""
        if self.deadlines is None:
            return None
        try:
            limit = hard_timeout(message.labels, self.task_timeout)
        except InvalidLabelError as error:
            # As with taskiq's own `timeout`, the task fails with what is wrong with it.
            execution.replace(partial(_fail, error))
            return None
        if limit is None:
            return None
        on_overdue = None
        if not self._waits_at_queue:
            on_overdue = partial(self._overdue, execution, message, limit, ack_controller)
        deadline = self.deadlines.add(entry, limit, on_overdue)
        if execution.is_async:
            deadline.begin()
        elif isinstance(self.executor, ProcessPool):
            execution.replace(self.executor.numbered(execution.original, deadline.number))
        else:
            execution.replace(deadline.from_its_thread(execution.original))
        return deadline

    @property
    def _waits_at_queue(self) -> bool:
        """Who waits for a result asks our queue, which is told by the supervisor how it ended."""
        return self.feed is not None and (self.feed is self.broker or keeps_results(self.broker))

    def _overdue(
        self,
        execution: Execution,
        message: TaskiqMessage,
        limit: float,
        ack_controller: AckController | None,
    ) -> None:
        """The supervisor is about to kill this process. Its broker would have the task run again.

        Who waits asks no queue of ours how it ended, so it is said in taskiq's way, now.
        """
        if execution.is_over:
            return
        execution.give_back()
        error = TaskTimeoutError(task_id=message.task_id, task=message.task_name, limit=limit)
        ending = asyncio.ensure_future(self._end_overdue(message, error, ack_controller))
        self._timing_out.add(ending)
        ending.add_done_callback(self._timing_out.discard)

    async def _end_overdue(
        self, message: TaskiqMessage, error: TaskTimeoutError, ack_controller: AckController | None
    ) -> None:
        result = error_result(error)
        result.labels = message.labels
        try:
            await self.broker.result_backend.set_result(message.task_id, result)
        except Exception:
            logger.exception("The result of task %s cannot be saved", message.task_id)
        # In a queue of ours the supervisor ends it.
        if self.feed is None and ack_controller is not None and ack_controller.is_ackable:
            await ack_controller.ack()
        logger.error("%s", error)

    # --- giving back -----------------------------------------------------------------------------

    def give_back_running(self) -> "tuple[set[asyncio.Future[None]], set[asyncio.Task[Any]]]":
        """Ends the code of async tasks without a trace of it.

        Returns what is done when their last `finally` blocks are, and the asyncio tasks that are
        busy with code that goes on.
        """
        ends = {execution.give_back() for execution in self._executions if execution.can_give_back}
        return ends, {execution.task for execution in self._executions if not execution.is_ending}


async def _fail(error: Exception, *_args: Any, **_kwargs: Any) -> NoReturn:
    raise error
