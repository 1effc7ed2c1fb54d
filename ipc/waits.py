"""Waiting for outcomes: who waits for which slot in this process, and who wakes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import UnknownTask
from taskiq_supervise.ipc.model import MessageState, Outcome, OutcomeKind, Ticket
from taskiq_supervise.ipc.word import generation_of, state_of

if TYPE_CHECKING:
    from taskiq_supervise.ipc.queue import TaskQueue

SWEEP = 1.0
"""Seconds between looks at what is waited for, in case nobody rang."""

_NOT_ACKNOWLEDGED = (
    MessageState.READY,
    MessageState.DELAYED,
    MessageState.LEASED,
    MessageState.RUNNING,
)


class OutcomeWaits:
    """The waits of one process on one event loop."""

    def __init__(self, queue: TaskQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._core = queue.core
        self._me = queue.participant
        self._loop = loop
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def wait(self, task: str | Ticket, timeout: float | None = None) -> Outcome:
        """See AsyncTaskQueue.wait()."""
        loop = self._loop
        ticket = task if isinstance(task, Ticket) else self._queue.find(task)
        ticket, outcome = self._look(ticket)
        if outcome is not None:
            return outcome
        deadline = None if timeout is None else loop.time() + timeout
        while outcome is None:
            await self._until_rung(ticket, deadline)
            ticket, outcome = self._look(ticket)
        return outcome

    async def acknowledged(self, ticket: Ticket) -> None:
        """See AsyncTaskQueue.acknowledged()."""
        while True:
            self._core.watch(self._me, ticket.slot)
            word = self._core.word(ticket.slot)
            waits = state_of(word) in _NOT_ACKNOWLEDGED
            if generation_of(word) != ticket.generation or not waits:
                self._unwatch(ticket)
                return
            await self._until_rung(ticket, None)

    async def _until_rung(self, ticket: Ticket, deadline: float | None) -> None:
        loop = self._loop
        future: asyncio.Future[None] = loop.create_future()
        self._waiters.setdefault(ticket.slot, set()).add(future)
        timer = None if deadline is None else loop.call_at(deadline, _time_out, future)
        if self._sweeping is None:
            self._sweeping = loop.call_later(SWEEP, self._sweep)
        try:
            # Between the look and the registration nothing of this thread ran but this code;
            # a ring in between is still in the doorbell.
            await future
        except (TimeoutError, asyncio.CancelledError):
            self._forget(ticket.slot, future)
            self._unwatch(ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(ticket.slot, future)

    def _look(self, ticket: Ticket) -> tuple[Ticket, Outcome | None]:
        """Watch, then look. Follows the id when its message has left the slot."""
        while True:
            self._core.watch(self._me, ticket.slot)
            try:
                outcome = self._queue.outcome_at(ticket)
            except LookupError:
                self._unwatch(ticket)
                newer = self._queue.find(ticket.task_id)
                if newer == ticket:
                    raise UnknownTask(f"task {ticket.task_id!r} left its slot just now") from None
                ticket = newer
                continue
            if outcome is None or outcome.kind is not OutcomeKind.NO_RESULT:
                return ticket, outcome
            newer = self._queue.find(ticket.task_id)
            if newer == ticket:
                return ticket, None  # it may come again; the sweep looks
            self._unwatch(ticket)
            ticket = newer

    def _unwatch(self, ticket: Ticket) -> None:
        """Nobody here will read what is in that slot: it need not be kept for us."""
        if not self._closed and ticket.slot not in self._waiters:
            self._core.unwatch(self._me, ticket.slot)

    def _sweep(self) -> None:
        self._sweeping = None
        if not self._waiters or self._closed:
            return
        self._core.arm(self._me)  # who was to ring may be stopped; others shall ring
        for slot in list(self._waiters):
            self._wake(slot)
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    def ended(self) -> None:
        """The doorbell rang for watched messages: wake those who wait for them."""
        slots = self._core.completions(self._me)
        while slots:
            for slot in slots:
                self._wake(slot)
            slots = self._core.completions(self._me)

    def _wake(self, slot: int) -> None:
        for future in self._waiters.get(slot, ()):
            if not future.done():
                future.set_result(None)

    def _forget(self, slot: int, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(slot)
        if waiters is not None:
            waiters.discard(future)
            if not waiters:
                del self._waiters[slot]

    def close(self) -> None:
        """Those who wait are cancelled."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for waiters in self._waiters.values():
            for future in waiters:
                future.cancel()
        self._waiters.clear()

    def abandon(self) -> None:
        """The loop is gone, or another thread's."""
        self._closed = True


def _time_out(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
