"""A worker's life: broker up, ready, tasks, drained or stopped, broker down.

One loop (uvloop), on which everything is an event: messages, signals, orders of the supervisor, the
end of its link. Drain: take nothing more, finish what runs. Stop: give back what runs, now. Neither
loses a task, and neither costs it a start.
"""

import asyncio
import logging
import os
import signal
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvloop
from taskiq.acks import AcknowledgeType

from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.ipc import BoardWriter
from taskiq_supervise.worker.application import Application, user_traceback
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.deadlines import Deadlines
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.link import Link
from taskiq_supervise.worker.order import Descriptors, ForkOrder
from taskiq_supervise.worker.process_pool import ProcessPool
from taskiq_supervise.worker.receiver import SupervisedReceiver, supervised
from taskiq_supervise.worker.stacks import dump_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq_supervise.broker.attachment import Attachment

logger = logging.getLogger("taskiq_supervise.worker")

INTERNAL_ERROR = 1
BOOT_FAILED = 3

HEARTBEAT = 1.0
"""Seconds. Costs some 30 µs each: four idle workers stay below 0.2 ms of CPU per second."""
GIVE_BACK_PATIENCE = 1.0
"""Seconds that the `finally` blocks of async tasks have when they are given back."""


class Worker:
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
        self._application = application
        self._broker = application.broker
        self._config = config
        self._link = link
        self._order = order
        self._board = board
        self._descriptors = descriptors
        self._ran = 0
        self._attachment: Attachment | None = None
        self._ordered = False
        """The supervisor wants this worker to stop, or is gone."""
        self._go: asyncio.Event
        self._finish: asyncio.Event
        self._stop: asyncio.Event

    def run(self) -> int:
        """The exit status: 0, INTERNAL_ERROR or BOOT_FAILED."""
        # Not uvloop.run(): closing the loop would wait for tasks that are given back, which never
        # return, and for threads that run them. The process ends instead.
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(self._live())

    async def _live(self) -> int:
        self._go = asyncio.Event()
        self._finish = asyncio.Event()
        self._stop = asyncio.Event()
        self._handle_signals()
        self._link.listen(self._obey, self._stop_as_ordered)
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
        # Not before: should nobody know of us, the seat may be another's.
        self._board.reset(os.getpid(), self._order.generation)
        self._beat(self._board.beat)
        return await self._work(receiver)

    async def _go_ahead(self) -> bool:
        """Waits until the supervisor knows of us: else a task that we took could be taken twice.

        The zygote may die before it has answered, and then nobody looks after us.
        """
        waiters = [
            asyncio.ensure_future(event.wait()) for event in (self._go, self._finish, self._stop)
        ]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()
        return self._go.is_set() and not self._stop.is_set()

    async def _boot(self) -> bool:
        """False: the broker did not start, or was not let."""
        self._broker.is_worker_process = True
        if isinstance(self._broker, SharedMemoryBroker):
            self._broker.guardian = self._order.guardian
            self._broker.worker_slot = self._order.slot
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
            if isinstance(self._broker, SharedMemoryBroker):
                self._attachment = await self._broker.attached()
            return True
        self._say_boot_failed("broker.startup() failed", error)
        return False

    async def _start_up(self) -> BaseException | None:
        """What it raised: raised again, a SystemExit would end the loop with nothing said."""
        try:
            await self._broker.startup()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return error
        return None

    def _say_boot_failed(self, what: str, error: BaseException) -> None:
        text = str(error).strip()
        message = f"{what}: {type(error).__name__}"
        message += f": {text.splitlines()[0]}" if text else ""
        self._link.say(
            "boot_failed", kind="startup", message=message, traceback=user_traceback(error)
        )

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
            await asyncio.wait_for(self._broker.shutdown(), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("broker.shutdown() did not end within %s s", timeout)
        except Exception:
            logger.exception("broker.shutdown() failed")

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

    def _be_ready(self) -> None:
        failpoint("ready.before")
        self._link.say("ready")
        failpoint("ready.after")

    def _count(self) -> None:
        """A task has ended. It works on until it is told to drain: its replacement comes first."""
        self._ran += 1
        if self._ran == self._order.max_tasks:
            self._link.say("worn", why="tasks")

    # --- what is asked of it ---------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._drain)
        # Not through the loop, which may be what hangs.
        signal.signal(signal.SIGQUIT, self._quit)

    def _quit(self, _number: int, _frame: object) -> None:
        try:
            self._explain_end()
        finally:
            os._exit(0)

    def _explain_end(self) -> None:
        """Our end is planned, and not the fault of the tasks that run.

        Only the supervisor plans. A signal may as well have come from a task, and then it counts as
        any other death: else the task would be started again without end.
        """
        planned = self._ordered or os.getppid() != self._order.supervisor_pid
        if planned and self._attachment is not None:
            self._attachment.explain_end()

    def _terminate(self) -> None:
        """Sent: drain, the second time stop. From the kernel, the supervisor being gone: stop."""
        if self._finish.is_set() or os.getppid() != self._order.supervisor_pid:
            self._stop_now()
        else:
            self._drain()

    def _obey(self, order: str) -> None:
        if order == "go":
            self._go.set()
        elif order == "answer":
            self._link.say("answer")
        elif order == "tasks":
            dump_tasks(self._descriptors.stacks)
        elif order == "drain":
            self._drain()
        elif order == "stop":
            self._stop_as_ordered()
        else:
            logger.error("The supervisor asks for %r, which is unknown here", order)

    def _drain(self) -> None:
        if not self._finish.is_set():
            failpoint("drain.before")
            self._finish.set()
            self._link.say("draining")

    def _stop_as_ordered(self) -> None:
        self._ordered = True
        self._stop_now()

    def _stop_now(self) -> None:
        self._stop.set()

    def _beat(self, beat: "Callable[[], None]") -> None:
        beat()
        asyncio.get_running_loop().call_later(HEARTBEAT, self._beat, beat)
