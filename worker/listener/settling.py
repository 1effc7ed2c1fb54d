"""Tasks that were given up, told to a result backend that knows nothing of the queue.

Who waits for a result asks the user's backend, and a task whose workers died has nobody left who
would save one. So the listener does, for messages that ended otherwise than by the end of their
function: when it starts, and whenever the supervisor says that there may be some.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from taskiq_supervise.broker.outcomes import decode
from taskiq_supervise.worker.listener.intake import Ending, Intake

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

logger = logging.getLogger("taskiq_supervise.listener")

UNNAMED = "unparsable-"
"""How the ids begin that messages get whose own cannot be read: nobody waits for those."""

TRY_AGAIN = 5.0
"""Seconds after which a backend that failed is asked again."""


class Settling:
    """Made on the listener's loop, once it holds the baton."""

    def __init__(self, broker: "AsyncBroker", intake: Intake) -> None:
        """broker: the application's, its result backend started."""
        self._broker = broker
        self._intake = intake
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._timer: asyncio.TimerHandle | None = None
        self._working = asyncio.create_task(self._work())

    def look(self) -> None:
        """There may be something to tell."""
        self._wanted.set()

    async def close(self) -> None:
        """One last look, and the end of it."""
        self._working.cancel()
        await asyncio.wait({self._working})
        if self._timer is not None:
            self._timer.cancel()
        await self._settle()

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not await self._settle():
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(TRY_AGAIN, self._wanted.set)

    async def _settle(self) -> bool:
        """False: the backend failed, and is to be asked again."""
        for ending in self._intake.endings():
            try:
                await self._tell(ending)
            except Exception:
                logger.exception("The end of task %s cannot be saved", ending.ticket.task_id)
                return False
            self._intake.settle(ending)
        return True

    async def _tell(self, ending: Ending) -> None:
        task_id = ending.ticket.task_id
        backend = self._broker.result_backend
        if task_id.startswith(UNNAMED) or await backend.is_result_ready(task_id):
            return
        result = decode(ending.outcome, self._name_of(ending), self._broker.serializer)
        logger.error("Task %s has ended without a result: %s", task_id, result.error)
        await backend.set_result(task_id, result)

    def _name_of(self, ending: Ending) -> str | None:
        try:
            return self._broker.formatter.loads(ending.payload).task_name
        except Exception as error:  # whatever a formatter raises
            logger.debug("Message %s tells no task: %s", ending.ticket.task_id, error)
            return None
