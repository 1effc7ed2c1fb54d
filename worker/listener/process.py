"""A listener's life: its source open, ready, the baton, messages, drained or stopped.

It is forked and ordered about like a worker, but runs no tasks. A successor opens its source and is
ready before its predecessor leaves; what only one of them may do it does when it has the baton.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from taskiq_supervise.broker.listening import keeps_results
from taskiq_supervise.broker.zeromq import ZeroMQBroker
from taskiq_supervise.ipc import DeathCause
from taskiq_supervise.worker.listener.baton import Baton
from taskiq_supervise.worker.listener.foreign import ForeignSource
from taskiq_supervise.worker.listener.opening import folder_of_queue, open_intake
from taskiq_supervise.worker.listener.router import UnusableAddress
from taskiq_supervise.worker.listener.settling import Settling
from taskiq_supervise.worker.listener.source import OwnSource, Source
from taskiq_supervise.worker.listener.store_intake import StoreIntake
from taskiq_supervise.worker.subordinate import BOOT_FAILED, INTERNAL_ERROR, Subordinate

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path
    from typing import Any

    from taskiq_supervise.ipc import BoardWriter
    from taskiq_supervise.worker.application import Application
    from taskiq_supervise.worker.config import WorkerConfig
    from taskiq_supervise.worker.link import Link
    from taskiq_supervise.worker.listener.intake import Intake
    from taskiq_supervise.worker.order import Descriptors, ForkOrder

logger = logging.getLogger("taskiq_supervise.listener")

OVERLAP = 0.5
"""Seconds for which it goes on beside its successor. Nobody says when a subscription has reached
the one who publishes; meanwhile both receive everything, and it is put once."""

FINISH_PATIENCE = 2.0
"""Seconds to put what has arrived into a queue that is full, when it is to leave."""

UNLIMITED = 10_000
"""Messages that are not acknowledged at a time, for workers that take any number."""


class Listener(Subordinate):
    """One listener process, from the moment it has its application."""

    def __init__(
        self,
        application: "Application",
        config: "WorkerConfig",
        link: "Link",
        order: "ForkOrder",
        board: "BoardWriter",
        descriptors: "Descriptors",
    ) -> None:
        super().__init__(link, order, board, descriptors)
        self._broker = application.broker
        self._config = config
        self._folder: Path
        self._baton: Baton
        self._source: Source
        self._intake: Intake | None = None
        self._settling: Settling | None = None
        self._obituaries: list[Mapping[str, Any]] = []
        """Of workers that died before there was an intake: for when there is one."""
        self._has_failed = False

    async def _live(self) -> int:
        try:
            self._folder = folder_of_queue(self._config, self._order)
            self._baton = Baton(self._folder)
            self._source = self._made_source()
            if not await self._unless_told(self._source.open()):
                return 0
        except Exception as error:
            self._say_boot_failed("the listener cannot be started", error)
            return BOOT_FAILED
        if not await self._go_ahead():
            await self._close()
            return 0
        self._be_seen()
        try:
            # The first listener says at its start what is wrong with the address.
            if self._baton.try_take():
                await self._begin_putting()
        except Exception as error:
            final = isinstance(error, UnusableAddress)
            self._say_boot_failed("the listener cannot be started", error, final=final)
            await self._close()
            return BOOT_FAILED
        self._be_ready()
        status = await self._listen()
        await self._close()
        return INTERNAL_ERROR if self._has_failed else status

    async def _listen(self) -> int:
        """Until it is told to leave, or cannot go on."""
        try:
            if self._intake is None:
                if not await self._unless_told(self._baton.take()):
                    return 0
                await self._begin_putting()
            running = asyncio.create_task(self._source.run())
            await self._unless_told(asyncio.shield(running))
            if not running.done() and not self._stop.is_set():
                await self._leave(running)
            if running.done():
                running.result()
            else:
                running.cancel()
                await asyncio.wait({running})
        except Exception:
            logger.exception("The listener has failed")
            return INTERNAL_ERROR
        return 0

    async def _leave(self, running: "asyncio.Task[None]") -> None:
        """Puts what has arrived; what arrives from now on is its successor's."""
        if self._baton.has_successor():
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({stopping, running}, timeout=OVERLAP)
            stopping.cancel()
        await self._source.finish()
        await asyncio.wait({running}, timeout=FINISH_PATIENCE)
        self._link.say("drained")

    async def _unless_told(
        self, waiting: "Coroutine[Any, Any, None] | asyncio.Future[None]"
    ) -> bool:
        """Waits for that, and raises what it raises. False: told to leave before."""
        task = asyncio.ensure_future(waiting)
        told = [asyncio.ensure_future(event.wait()) for event in (self._finish, self._stop)]
        await asyncio.wait([task, *told], return_when=asyncio.FIRST_COMPLETED)
        for waiter in told:
            waiter.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait([task])
        return False

    def _made_source(self) -> Source:
        broker = self._broker
        if isinstance(broker, ZeroMQBroker):
            return OwnSource(broker)
        config = self._config
        at_a_time = config.max_async_tasks + config.max_prefetch
        most = config.workers * at_a_time if config.max_async_tasks > 0 else UNLIMITED
        return ForeignSource(broker, most, self._folder)

    async def _begin_putting(self) -> None:
        """With the baton."""
        self._intake = await open_intake(self._broker, self._config, self._order)
        if not keeps_results(self._broker):
            self._settling = Settling(self._broker, self._intake)
        if isinstance(self._intake, StoreIntake):
            self._intake.hub.on_burial = self._look_for_ends
            self._intake.hub.on_failure = self._fail
            for obituary in self._obituaries:
                self._worker_gone(obituary)
            self._obituaries.clear()
        self._source.begin(self._intake)

    async def _close(self) -> None:
        """Everything, within the time that the options allow for a shutdown."""
        if self._is_seen:
            self._show()
        try:
            await asyncio.wait_for(self._close_all(), self._config.shutdown_timeout)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning(
                "The listener's shutdown did not end within %s s", self._config.shutdown_timeout
            )
        except Exception:
            logger.exception("The listener's shutdown failed")
        finally:
            # After the address is free: the next one binds it at once.
            self._baton.release()

    async def _close_all(self) -> None:
        if self._settling is not None:
            await self._settling.close()
        await self._source.close()
        if self._intake is not None:
            await self._intake.close()

    def _fail(self, error: Exception) -> None:
        """The store cannot be used any more; perhaps another process can."""
        logger.error("The listener cannot go on: %s", error)
        self._has_failed = True
        self._stop_now()

    # --- orders that only a listener gets --------------------------------------------------------

    def _obey(self, order: str) -> None:
        if order != "settle":
            super()._obey(order)
        else:
            self._look_for_ends()

    def _look_for_ends(self) -> None:
        if self._settling is not None:  # else it looks when it has the baton
            self._settling.look()

    def _worker_gone(self, obituary: "Mapping[str, Any]") -> None:
        if self._intake is None:
            if self._config.transport == "zmq":
                self._obituaries.append(obituary)
        elif isinstance(self._intake, StoreIntake):
            self._intake.gone(
                DeathCause.unpacked(int(obituary["record"])),
                explained=bool(obituary["explained"]),
                overdue=tuple(obituary["overdue"]),
                max_deliveries=int(obituary["max_deliveries"]),
            )

    def _show(self) -> None:
        super()._show()
        self._board.say_received(self._source.received)
