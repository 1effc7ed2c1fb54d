"""The intake of `--transport zmq`: into the ledger, from which the hub gives to the workers."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.payload import check_fits
from taskiq_supervise.broker.progress import ProgressFolder
from taskiq_supervise.ipc import DeathCause, Outcome, QueueError, Ticket, UnknownTask
from taskiq_supervise.worker.listener import store
from taskiq_supervise.worker.listener.hub import Arrival, Hub, Wait
from taskiq_supervise.worker.listener.intake import Ending, Incoming
from taskiq_supervise.worker.listener.ledger import Ledger, Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from taskiq.depends.progress_tracker import TaskProgress


class StoreIntake:
    """The store of a folder, and the hub beside it. For one process at a time.

    Attributes:
        hub: its `on_failure` is told when the store cannot be used any more.
    """

    def __init__(self, ledger: Ledger, folder: Path, max_deliveries: int) -> None:
        self.hub = Hub(ledger, folder)
        self._ledger = ledger
        self._folder = folder
        self._max_deliveries = max_deliveries
        self._progress = ProgressFolder(folder / "progress")

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        limits: Limits | None = None,
        result_ttl: float | None = None,
        max_deliveries: int = 0,
    ) -> "StoreIntake":
        """On the running loop.

        limits: what the ledger keeps. result_ttl: seconds for which it keeps results, 0: until
        there are too many; None: as limits say. max_deliveries: for messages that say nothing else;
        0: as the supervisor says. Raises StoreError.
        """
        limits = limits or Limits()
        if result_ttl is not None:
            limits = replace(limits, result_ttl=result_ttl)
        ledger = Ledger(store.Store(folder / store.FILE), limits)
        try:
            intake = cls(ledger, folder, max_deliveries)
            intake.hub.start()
            intake._progress.sweep(intake._is_over)
        except BaseException:
            ledger.close()
            raise
        return intake

    def _is_over(self, task_id: str) -> bool:
        try:
            return self._ledger.look(task_id) is not None
        except UnknownTask:
            return True

    # ---- what sources ask -----------------------------------------------------------------------

    def last_from(self, sender: bytes) -> int:
        return self._ledger.last_from(sender)

    async def accept(
        self, message: Incoming, sender: tuple[bytes, int] | None = None
    ) -> Ticket | None:
        check_fits(message.size, self._folder)
        if self._max_deliveries and not message.schedule.max_deliveries:
            schedule = message.schedule
            message = Incoming(
                message.task_id,
                message.payload,
                message.buffers,
                Schedule(schedule.priority, schedule.due, schedule.expires, self._max_deliveries),
            )
        answer: asyncio.Future[Ticket | None] = asyncio.get_running_loop().create_future()
        arrival = Arrival(message, sender, partial(_resolve, answer))
        self.hub.accept(arrival)
        try:
            return await answer
        except asyncio.CancelledError:
            self.hub.take_back(arrival)
            raise

    async def wait(self, target: str | Ticket) -> Outcome:
        outcome: Outcome = await self._awaited(target, self._ledger.awaited)
        return outcome

    def look(self, target: str | Ticket) -> Outcome | None:
        return self._ledger.look(target)

    def progress(self, task_id: str) -> "TaskProgress[Any] | None":
        return self._progress.get(task_id)

    async def acknowledged(self, target: str | Ticket) -> None:
        def look(target: str | Ticket) -> bool | None:
            return self._ledger.was_acknowledged(target) or None

        await self._awaited(target, look)

    async def _awaited(self, target: str | Ticket, look: "Callable[[str | Ticket], Any]") -> "Any":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wait = Wait(target, partial(_resolve, answer), look)
        self.hub.wait(wait)
        try:
            return await answer
        finally:
            self.hub.give_up(wait)

    def endings(self) -> list[Ending]:
        return [
            Ending(entry.ticket, self._ledger.outcome(entry), payload)
            for entry, payload in self._ledger.unsettled()
        ]

    def settle(self, ending: Ending) -> None:
        try:
            entry = self._ledger.find(ending.ticket)
        except UnknownTask:  # it made room for newer ones
            return
        self._ledger.settle(entry)
        self.hub.turn_soon()

    async def close(self) -> None:
        self.hub.close()
        self._ledger.close()

    # ---- what the supervisor says ---------------------------------------------------------------

    def gone(
        self,
        cause: DeathCause,
        *,
        explained: bool = False,
        overdue: tuple[str, ...] = (),
        max_deliveries: int = 0,
    ) -> None:
        """A worker, `cause.pid`, was reaped.

        explained: its end was planned. overdue: tasks that it was killed for. max_deliveries: how
        often a message that says nothing else is started.
        """
        if max_deliveries:
            self._ledger.max_deliveries = max_deliveries
        self.hub.gone(cause, explained=explained, overdue=overdue)


def _resolve(answer: "asyncio.Future[Any]", what: "Any") -> None:
    if answer.done():
        return
    if isinstance(what, QueueError):
        answer.set_exception(what)
    else:
        answer.set_result(what)
