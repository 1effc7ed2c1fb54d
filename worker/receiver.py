"""taskiq's receiver under supervision: what runs is known, and can be given back.

Where the messages come from a queue of ours, a SharedMemoryBroker's or the pool's feed, it owns the
way from there to the task: it claims only what it has room to run, one asyncio task per message,
and every message ends somehow (taskiq's own receiver drops what it cannot parse). Executing stays
taskiq's `run_task`, with its dependencies, middlewares, timeouts and labels. For any other broker
the way is taskiq's as well, and `run_task` is watched.

A task whose worker died runs alone from its second start on: if it kills this worker too, it takes
no neighbour with it. Alone means that nobody else makes progress: a neighbour that only waits for a
result does not count, it may be this one's.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.acks import AckController, AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver
from taskiq.result import TaskiqResult
from taskiq.utils import maybe_awaitable

from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.broker.delivery import Delivery, current_delivery
from taskiq_supervise.broker.errors import QueueNotStartedError
from taskiq_supervise.broker.labels import mark_delivered
from taskiq_supervise.broker.listening import keeps_results
from taskiq_supervise.broker.outcomes import dead_letter, error_result
from taskiq_supervise.broker.queue_broker import QueueBroker
from taskiq_supervise.broker.results import complete
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.ipc import DeadReason, LeaseLost
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.log_style import current_task
from taskiq_supervise.worker.tracking import TrackingReceiver

logger = logging.getLogger("taskiq_supervise.worker")

LOOK_AGAIN = 0.05
"""Seconds between looks for an idle worker while a task waits for this one to be quiet."""

_WAYS = ("callback", "listen", "prefetcher", "runner")


class SupervisedReceiver(TrackingReceiver):
    """Takes the same arguments as taskiq's receiver."""

    on_listening: Callable[[], None] | None = None
    """Called once messages can come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        self._alone: Delivery | None = None
        self._change: asyncio.Future[None] | None = None
        self._finish: asyncio.Event | None = None
        self._giving_back = False
        self._taking: asyncio.Task[None] | None = None

    # --- the way from the queue to the task ------------------------------------------------------

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Runs tasks until the event is set and those that run by then have ended."""
        feed = self._own_way()
        if feed is None:
            self._announce()
            await super().listen(finish_event)
            return
        if self.run_startup:
            await self.broker.startup()
        attachment = await feed.attached()
        if attachment is None:
            raise QueueNotStartedError(queue=feed.name, reason=feed.why_not_started())
        self._finish = finish_event
        taking = self._taking = asyncio.create_task(self._take(attachment))
        finishing = asyncio.create_task(finish_event.wait())
        try:
            # Until it has asked for its first message, a worker is not counted as one that is free,
            # and others take a second task before it has one.
            await asyncio.sleep(0)
            logger.info("Listening started.")
            self._announce()
            await asyncio.wait({taking, finishing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finishing.cancel()
            taking.cancel()
        await asyncio.wait({taking})
        if self._in_flight:
            logger.info("Waiting for %d running tasks to complete...", len(self._in_flight))
            await asyncio.wait(set(self._in_flight), timeout=self.wait_tasks_timeout)
        if not taking.cancelled():
            taking.result()
        if self.on_exit is not None:
            self.on_exit(self)

    def _announce(self) -> None:
        if self.on_listening is not None:
            self.on_listening()

    def _own_way(self) -> SharedMemoryBroker | None:
        """The feed, if the way from it is ours: a receiver with own ways keeps them."""
        feed = self.feed
        if feed is None:
            return None
        if feed is self.broker and type(feed).listen is not SharedMemoryBroker.listen:
            return None
        base = super()
        for name in _WAYS:
            if getattr(base, name).__func__ is not getattr(Receiver, name):
                return None
        return feed

    async def _take(self, attachment: Attachment) -> None:
        taken = 0
        while not self.max_tasks_to_execute or taken < self.max_tasks_to_execute:
            if self.sem is not None:
                await self.sem.acquire()
            try:
                delivery = await self._next(attachment)
            except BaseException:
                if self.sem is not None:
                    self.sem.release()
                raise
            taken += 1
            task = asyncio.create_task(self._process(delivery))
            self._in_flight[task] = delivery
            task.add_done_callback(self._processed)
            # It begins before the next one is claimed.
            await asyncio.sleep(0)
        logger.info("Max number of tasks executed.")

    async def _next(self, attachment: Attachment) -> Delivery:
        while True:
            if not self._may_take():
                await self._until(self._may_take)
            lease = await attachment.claim()
            failpoint("claim.after")
            keep = keeps_results(self.broker)
            delivery = attachment.take(lease, keep=keep, on_change=self._changed)
            try:
                if not self._may_take():
                    await self._until(self._may_take)
                if lease.attempt == 0:
                    return delivery
                if await self._is_quiet(attachment):
                    logger.warning(
                        "Task %s runs alone: its worker died, start %d",
                        lease.task_id,
                        lease.attempt + 1,
                    )
                    self._alone = delivery
                    return delivery
            except BaseException:
                delivery.release()
                raise
            delivery.release()

    async def _is_quiet(self, attachment: Attachment) -> bool:
        """Waits until what runs here has ended. False: another worker has nothing to do by now.

        It can start at once what would have to wait here. It may have been starting up, so it is
        looked for again and again; a timer for as long as the wait lasts.
        """
        while not self._others_wait():
            if attachment.queue.others_are_empty:
                return False
            timer = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._changed)
            try:
                await self._until_changed()
            finally:
                timer.cancel()
        return True

    def _is_leaving(self) -> bool:
        """What was taken and has not begun goes back at once."""
        return self._giving_back or (self._finish is not None and self._finish.is_set())

    def _may_take(self) -> bool:
        return self._alone is None or self._alone.waiting > 0

    def _others_wait(self) -> bool:
        return all(delivery.waiting > 0 for delivery in self._in_flight.values())

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._until_changed()

    async def _until_changed(self) -> None:
        self._change = asyncio.get_running_loop().create_future()
        await self._change

    def _changed(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def _processed(self, task: "asyncio.Task[None]") -> None:
        delivery = self._in_flight.pop(task)
        if self._alone is delivery:
            self._alone = None
        if self.sem is not None:
            self.sem.release()
        self._changed()
        if not task.cancelled() and task.exception() is not None:
            logger.error("Task %s could not be ended", delivery.task_id, exc_info=task.exception())

    # --- one message -----------------------------------------------------------------------------

    async def _process(self, delivery: Delivery) -> None:
        current_delivery.set(delivery)
        try:
            await self._handle(delivery)
        except LeaseLost as error:
            delivery.lost(error)
        except Exception as error:
            # A middleware, or a label that says nothing. taskiq leaves such a message to its
            # broker for good; here somebody may be waiting for the result.
            logger.exception("Task %s failed outside of its function", delivery.task_id)
            await self._fail(delivery, error)
        finally:
            delivery.finished = True

    async def _handle(self, delivery: Delivery) -> None:
        broker = self.broker
        try:
            message = broker.formatter.loads(delivery.payload)
            message.parse_labels()
            if isinstance(broker, QueueBroker):
                mark_delivered(message)  # for a formatter that does not
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            logger.error("Message %s is put aside: not parsable: %s", delivery.task_id, reason)
            await self._put_aside(delivery, DeadReason.UNPARSABLE, reason)
            return
        # For what is logged about it around its run, too; this asyncio task is its own.
        current_task.set({"task_id": message.task_id, "task_name": message.task_name})
        task = broker.find_task(message.task_name)
        if task is None:
            logger.error(
                'Message %s is put aside: task "%s" is not found. Maybe you forgot to import it?',
                delivery.task_id,
                message.task_name,
            )
            await self._put_aside(delivery, DeadReason.UNKNOWN_TASK, message.task_name)
            return
        for middleware in broker.middlewares:
            if middleware.__class__.pre_execute != TaskiqMiddleware.pre_execute:
                message = await maybe_awaitable(middleware.pre_execute(message))
        ack_time = self._get_ack_time(message)
        if self._is_leaving():
            delivery.release()
            return
        failpoint("start.before")
        delivery.start()
        failpoint("start.after")
        delivery.manual = ack_time is AcknowledgeType.MANUAL
        logger.info("Executing task %s with ID: %s", message.task_name, message.task_id)
        if ack_time is AcknowledgeType.WHEN_RECEIVED:
            await self._acknowledge(delivery)
        result = await self.run_task(task.original_func, message, AckController(delivery.ack))
        if ack_time is AcknowledgeType.WHEN_EXECUTED:
            await self._acknowledge(delivery)
        await self._save(message, result)
        if delivery.manual and not delivery.acked:
            logger.warning(
                "Task %s ended without acknowledging (ack_type is manual): it stays taken until it "
                "does, or until this worker ends",
                delivery.task_id,
            )
            return
        failpoint("ack.before")
        # Without a result here: NoResultError (a retry), or another result backend has it.
        delivery.finish()
        failpoint("ack.after")

    async def _acknowledge(self, delivery: Delivery) -> None:
        failpoint("ack.before")
        await delivery.ack()
        failpoint("ack.after")

    async def _put_aside(self, delivery: Delivery, reason: DeadReason, detail: str) -> None:
        if self.feed is not self.broker and not keeps_results(self.broker):
            # Who waits asks a result backend that never sees the queue.
            error = dead_letter(delivery.task_id, reason, detail, delivery.lease.attempt)
            await self._set_result(delivery.task_id, error_result(error))
        delivery.dead_letter(reason, detail)

    async def _save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        broker = self.broker
        for middleware in reversed(broker.middlewares):
            if middleware.__class__.post_execute != TaskiqMiddleware.post_execute:
                await maybe_awaitable(middleware.post_execute(message, result))
        if isinstance(result.error, NoResultError):
            return
        failpoint("save.before")
        saved = await self._set_result(message.task_id, result)
        failpoint("save.after")
        if not saved:
            return
        try:
            for middleware in reversed(broker.middlewares):
                if middleware.__class__.post_save != TaskiqMiddleware.post_save:
                    await maybe_awaitable(middleware.post_save(message, result))
        except Exception:
            logger.exception(
                "A middleware failed after the result of %s was saved", message.task_id
            )

    async def _set_result(self, task_id: str, result: TaskiqResult[Any]) -> bool:
        """False: another result backend failed, and taskiq goes on as if it had not."""
        try:
            await self.broker.result_backend.set_result(task_id, result)
        except Exception:
            if keeps_results(self.broker):
                raise
            logger.exception("Can't set result in result backend.")
            return False
        return True

    async def _fail(self, delivery: Delivery, error: Exception) -> None:
        """Ends a message with an error where nothing else has."""
        delivery.manual = False
        broker = self.broker
        try:
            if not delivery.ended:
                if not delivery.started:
                    delivery.start()
                failed = error_result(error)
                if isinstance(broker, QueueBroker) and broker.keeps_results:
                    # Not by way of the result backend, which may be what failed.
                    await complete(delivery, failed, broker)
                else:
                    await self._set_result(delivery.task_id, failed)
                delivery.finish()
        except LeaseLost as lost:
            delivery.lost(lost)

    async def give_back(self, patience: float) -> None:
        """Ends the code of async tasks without a trace of it: they run again, elsewhere.

        Waits up to `patience` seconds for their `finally` blocks, and for messages that are beyond
        their function to be saved. Afterwards the process has to end: sync tasks still run, and
        only its end proves to the queue that nothing of this runs any more.
        """
        self._giving_back = True
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait({self._taking})
        ends, busy = self.give_back_running()
        waits: set[asyncio.Future[None]] = {*ends, *(self._in_flight.keys() - busy)}
        if waits:
            await asyncio.wait(waits, timeout=patience)


def supervised(base: type[Receiver]) -> type[SupervisedReceiver]:
    """The receiver class to use where the user asked for `base`."""
    if base is Receiver:
        return SupervisedReceiver
    if issubclass(base, SupervisedReceiver):
        return base
    return type(f"Supervised{base.__name__}", (SupervisedReceiver, base), {})
