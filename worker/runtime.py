"""A worker's life: broker up, ready, tasks, drained or stopped, broker down.

Drain: take nothing more, finish what runs. Stop: give back what runs, now. Neither loses a task,
and neither costs it a start.
"""

import asyncio
import logging
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from taskiq.acks import AcknowledgeType

from taskiq_supervise.ipc import BoardWriter
from taskiq_supervise.worker.application import Application
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.deadlines import Deadlines
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.feed import feed_for, take_from
from taskiq_supervise.worker.link import Link
from taskiq_supervise.worker.order import Descriptors, ForkOrder
from taskiq_supervise.worker.process_pool import ProcessPool
from taskiq_supervise.worker.receiver import SupervisedReceiver, supervised
from taskiq_supervise.worker.subordinate import BOOT_FAILED, INTERNAL_ERROR, Subordinate
from taskiq_supervise.worker.zeromq_context import close_context, renew_context

if TYPE_CHECKING:
    from taskiq_supervise.broker.attachment import Attachment

logger = logging.getLogger("taskiq_supervise.worker")

GIVE_BACK_PATIENCE = 1.0
"""Seconds that the `finally` blocks of async tasks have when they are given back."""


class Worker(Subordinate):
    """One worker process, from the moment it has its application."""

    def __init__(
        self,
        application: Application,
        config: WorkerConfig,
        link: Link,
        order: ForkOrder,
        board: BoardWriter,
        descriptors: Descriptors,
    ) -> None:
        super().__init__(link, order, board, descriptors)
        self._application = application
        self._broker = application.broker
        self._config = config
        self._feed = feed_for(self._broker, config)
        self._ran = 0
        self._attachment: Attachment | None = None

    async def _live(self) -> int:
        if not await self._boot():
            return 0 if self._stop.is_set() or self._finish.is_set() else BOOT_FAILED
        failpoint("boot.after")
        try:
            receiver = self._receiver()
        except Exception as error:
            self._say_boot_failed("the receiver cannot be made", error)
            return BOOT_FAILED
        receiver.on_listening = self._be_ready
        if not await self._go_ahead():
            await self._shut_down()
            return 0
        self._be_seen()
        return await self._work(receiver)

    async def _boot(self) -> bool:
        """False: the broker did not start, or was not let."""
        self._broker.is_worker_process = True
        renew_context(self._broker)
        if self._feed is not None:
            self._feed.is_worker_process = True
            self._feed.guardian = self._order.guardian
            self._feed.worker_slot = self._order.slot
            if self._config.transport == "zmq":
                from taskiq_supervise.worker.hub_feed import hub_base

                self._feed.directory = hub_base(self._order.board)
        booting = asyncio.ensure_future(self._start_up())
        leaving = [asyncio.ensure_future(event.wait()) for event in (self._finish, self._stop)]
        await asyncio.wait([booting, *leaving], return_when=asyncio.FIRST_COMPLETED)
        for waiter in leaving:
            waiter.cancel()
        if not booting.done():
            booting.cancel()
            await asyncio.wait([booting], timeout=GIVE_BACK_PATIENCE)
            return False
        error = booting.result()
        if error is None:
            if self._feed is not None:
                self._attachment = await self._feed.attached()
            return True
        self._say_boot_failed("broker.startup() failed", error)
        return False

    async def _start_up(self) -> BaseException | None:
        """What it raised: raised again, a SystemExit would end the loop with nothing said."""
        try:
            if self._feed is not None and self._feed is not self._broker:
                take_from(self._broker, self._feed)
                await self._feed.startup()
            await self._broker.startup()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return error
        return None

    async def _work(self, receiver: SupervisedReceiver) -> int:
        listening = asyncio.ensure_future(receiver.listen(self._finish))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([listening, stopping], return_when=asyncio.FIRST_COMPLETED)
        status = 0
        if listening.done():
            stopping.cancel()
            error = listening.exception()
            if error is not None:
                logger.error("The broker stopped listening", exc_info=error)
                status = INTERNAL_ERROR
            elif not self._finish.is_set():
                logger.error("The broker has ended listening, and nobody asked for that")
                status = INTERNAL_ERROR
            self._link.say("drained")
            failpoint("drain.after")
        else:
            self._explain_end()
            await receiver.give_back(GIVE_BACK_PATIENCE)
        await self._shut_down()
        return status

    async def _shut_down(self) -> None:
        """The broker's shutdown; a queue with tasks that still run stays open until our end."""
        timeout = self._config.shutdown_timeout
        try:
            await asyncio.wait_for(self._shut_down_brokers(), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("broker.shutdown() did not end within %s s", timeout)
        except Exception:
            logger.exception("broker.shutdown() failed")

    async def _shut_down_brokers(self) -> None:
        try:
            await self._broker.shutdown()
        finally:
            close_context(self._broker)
            # Last: the end of the application may send tasks.
            if self._feed is not None and self._feed is not self._broker:
                await self._feed.shutdown()

    def _receiver(self) -> SupervisedReceiver:
        config = self._config
        arguments: dict[str, Any] = dict(config.receiver_arg)
        deadlines = Deadlines(self._board, self._descriptors.timer)
        receiver = supervised(self._application.receiver)(
            broker=self._broker,
            executor=self._executor(deadlines),
            validate_params=not config.no_parse,
            max_async_tasks=config.max_async_tasks,
            max_async_tasks_jitter=config.max_async_tasks_jitter,
            max_prefetch=config.max_prefetch,
            propagate_exceptions=not config.no_propagate_errors,
            run_startup=False,
            ack_type=AcknowledgeType(config.ack_type.lower()),
            **arguments,
        )
        receiver.feed = self._feed
        receiver.board = self._board
        receiver.deadlines = deadlines
        receiver.task_timeout = config.task_timeout
        receiver.on_end = self._count
        return receiver

    def _executor(self, deadlines: Deadlines) -> Executor:
        if self._config.use_process_pool:
            return ProcessPool(self._config.max_process_pool_processes, deadlines.begin)
        return ThreadPoolExecutor(self._config.max_threadpool_threads)

    # --- what it says ----------------------------------------------------------------------------

    def _count(self) -> None:
        """A task has ended. It works on until it is told to drain: its replacement comes first."""
        self._ran += 1
        if self._ran == self._order.max_tasks:
            self._link.say("worn", why="tasks")

    def _explain_end(self) -> None:
        """Our end is planned, and not the fault of the tasks that run.

        Only the supervisor plans. A signal may as well have come from a task, and then it counts as
        any other death: else the task would be started again without end.
        """
        planned = self._ordered or os.getppid() != self._order.supervisor_pid
        if planned and self._attachment is not None:
            self._attachment.explain_end()
