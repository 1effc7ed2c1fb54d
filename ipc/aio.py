"""AsyncTaskQueue: a TaskQueue on a running event loop.

One reader on the doorbell serves everything that waits: the claim of a worker, the waits for
results, and the duties of the custodian. Nothing polls. Timers exist only while somebody waits: a
wake that was not answered within PATIENCE is passed on to another worker, because the one that was
rung may be stopped; work that is still there a SWEEP later is rung for everywhere, and every SWEEP
the watched messages are looked at, because a process may be stopped between a step and the ring
that tells of it.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.custodian import Custodian
from taskiq_supervise.ipc.errors import QueueFull, UnknownTask
from taskiq_supervise.ipc.model import Outcome, OutcomeKind, Ticket
from taskiq_supervise.ipc.queue import outcome_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from taskiq_supervise.ipc.lease import Lease
    from taskiq_supervise.ipc.queue import TaskQueue

PATIENCE = 0.005
"""Seconds that a rung worker has to come, before another is rung. A wake across CPUs takes about
25 µs on the machines measured."""

DEPTH_PATIENCE = 0.05
"""Seconds that a worker which runs something leaves a message to one that runs nothing. Longer,
because on a busy machine the other one comes late, and not two tasks in one worker is the point."""

SWEEP = 1.0
"""Seconds between looks at what is waited for, in case nobody rang."""

_BACKOFF_FROM, _BACKOFF_TO = 0.001, 0.05


class AsyncTaskQueue:
    """Waits on a queue. Belongs to the loop on which start() ran.

    Attributes:
        queue: the TaskQueue; closed by close().
        custodian: what it does for the whole queue while no better one is there.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self._core = queue.core
        self._me = queue.participant
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._claimer: asyncio.Future[None] | None = None
        self._impatient = False
        self._patience: asyncio.TimerHandle | None = None
        self._passing: asyncio.TimerHandle | None = None
        self._unheard: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen to the doorbell."""
        loop = self._loop = asyncio.get_running_loop()
        self.custodian = Custodian(self.queue, loop)
        loop.add_reader(self.queue.fileno(), self._on_bell)
        self.queue.on_empty = self._emptied
        self._core.arm(self._me)
        self.custodian.start()
        self._on_bell()

    async def close(self) -> None:
        """Leave the queue. Those who wait here are cancelled."""
        if self._loop is None:
            self.queue.close()
            return
        self.custodian.close()
        self._loop.remove_reader(self.queue.fileno())
        for timer in (self._patience, self._passing, self._unheard, self._sweeping):
            if timer is not None:
                timer.cancel()
        for waiters in self._waiters.values():
            for future in waiters:
                future.cancel()
        self._waiters.clear()
        if self._claimer is not None:
            self._claimer.cancel()
        self._loop = None
        self.queue.close()

    def abandon(self) -> None:
        """close() for who is not on the loop any more: it is closed, or another thread's."""
        if self._loop is not None:
            self.custodian.abandon()
            self._loop = None
        self.queue.close()

    # ---- putting ----

    async def put(
        self,
        task_id: str,
        payload: Buffer,
        *,
        max_deliveries: int = 0,
        timeout: float | None = None,
    ) -> Ticket:
        """Add a message, waiting while the queue is full.

        Args:
            timeout: seconds to wait for room; None: as long as it takes.

        Raises:
            QueueFull: no room within the timeout. PayloadTooLarge: there never will be.
        """
        loop = self._running()
        deadline = None if timeout is None else loop.time() + timeout
        pause = _BACKOFF_FROM
        while True:
            try:
                ticket = self.queue.put(task_id, payload, max_deliveries=max_deliveries)
            except QueueFull as error:
                if deadline is not None and loop.time() >= deadline:
                    raise QueueFull(
                        f"queue {self.queue.name!r} stayed full for {timeout} s "
                        f"({self.queue.geometry.slots} slots, payload of "
                        f"{memoryview(payload).nbytes} bytes); start more workers, "
                        "or make the queue larger"
                    ) from error
            else:
                if self._passing is None:
                    self._passing = loop.call_later(PATIENCE, self._pass_on)
                return ticket
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, _BACKOFF_TO)

    def _pass_on(self) -> None:
        """Work is still there, so whoever was rung for it has not come: ring the next one."""
        self._passing = None
        if self._loop is None or not self._core.ready_hints():
            return
        sleeper = self._core.pick_sleeper(self._me, False)
        if sleeper:
            self.queue.ring(sleeper)
            self._passing = self._loop.call_later(PATIENCE, self._pass_on)
        elif self._unheard is None:
            self._unheard = self._loop.call_later(SWEEP, self._ring_everywhere)

    def _ring_everywhere(self) -> None:
        """Nobody seems to sleep, and there is work: all are busy, or one who took a sleeper's
        announcement was stopped before it rang."""
        self._unheard = None
        if self._loop is not None:
            self.queue.ring_workers()

    # ---- claiming ----

    async def claim(self) -> Lease:
        """Take the next message, waiting until there is one.

        Spread before depth: while this participant holds leases it leaves messages to workers
        that hold none, as long as there are not more messages than such workers. One claim at a
        time.
        """
        loop = self._running()
        core, me = self._core, self._me
        lease = self._take()
        while lease is None:
            core.sleep(me, self.queue.unfinished == 0)
            lease = self._take()  # look again: who published before it saw us asleep rings nobody
            if lease is not None:
                core.wake_up(me)
                break
            self._claimer = loop.create_future()
            try:
                await self._claimer
            except asyncio.CancelledError:
                self._stop_looking()
                raise
            finally:
                self._claimer = None
            core.wake_up(me)
            lease = self._take()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        return lease

    def _take(self) -> Lease | None:
        core, me = self._core, self._me
        again = True
        if self.queue.unfinished and not self._impatient:
            ready = core.ready_hints()
            if not ready:
                return None
            empty_others = core.empty_others(me)
            if ready <= empty_others:
                self._leave_to_others()
                return None
            again = not empty_others  # what may have killed its worker is for one that has nothing
        self._impatient = False
        lease = self.queue.claim(again=again)
        if lease is None and not again:
            self._leave_to_others()
        if lease is not None:
            core.set_empty(me, False)
            if core.ready_hints():
                self.queue.ring(core.pick_sleeper(me, False))
        return lease

    def _leave_to_others(self) -> None:
        self.queue.ring(self._core.pick_sleeper(self._me, True))
        if self._patience is None and self._loop is not None:
            self._patience = self._loop.call_later(DEPTH_PATIENCE, self._lose_patience)

    def _emptied(self) -> None:
        """The last task ended while the next claim was waiting: producers prefer us from now on."""
        if self._claimer is not None:
            self._core.set_empty(self._me, True)

    def _lose_patience(self) -> None:
        self._patience = None
        if not self._core.ready_hints():
            return
        self._core.ignore_unanswering(self._me)
        self._impatient = True
        if self._claimer is not None and not self._claimer.done():
            self._claimer.set_result(None)

    def _stop_looking(self) -> None:
        """The claim was cancelled: take the announcements back, pass on a wake that was meant for
        it."""
        if self._loop is None:
            return
        self._core.wake_up(self._me)
        self._core.set_empty(self._me, False)
        if self._core.ready_hints():
            self.queue.ring(self._core.pick_sleeper(self._me, False))

    @property
    def others_are_empty(self) -> bool:
        """Another worker holds nothing and looks for work."""
        return self._core.empty_others(self._me) > 0

    # ---- waiting for outcomes ----

    async def wait(self, task: str | Ticket, timeout: float | None = None) -> Outcome:
        """Wait until the task has ended. A retry under the same id is waited for too.

        Raises:
            TimeoutError: not ended within `timeout` seconds.
            UnknownTask: the id is not in the queue (any more), so there is nothing to wait for.
        """
        loop = self._running()
        ticket = task if isinstance(task, Ticket) else self.queue.find(task)
        ticket, outcome = self._look(ticket)
        if outcome is not None:
            return outcome
        deadline = None if timeout is None else loop.time() + timeout
        while outcome is None:
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
            ticket, outcome = self._look(ticket)
        return outcome

    def _look(self, ticket: Ticket) -> tuple[Ticket, Outcome | None]:
        """Watch, then look. Follows the id when its message has left the slot."""
        while True:
            self._core.watch(self._me, ticket.slot)
            try:
                found = self._core.outcome(ticket.slot, ticket.generation)
            except LookupError:
                self._unwatch(ticket)
                newer = self.queue.find(ticket.task_id)
                if newer == ticket:
                    raise UnknownTask(f"task {ticket.task_id!r} left its slot just now") from None
                ticket = newer
                continue
            if found is None:
                return ticket, None
            outcome = outcome_of(ticket.task_id, *found)
            if outcome.kind is not OutcomeKind.NO_RESULT:
                return ticket, outcome
            newer = self.queue.find(ticket.task_id)
            if newer == ticket:
                return ticket, None  # it may come again; the sweep looks
            self._unwatch(ticket)
            ticket = newer

    def _unwatch(self, ticket: Ticket) -> None:
        """Nobody here will read what is in that slot: it need not be kept for us."""
        if self._loop is not None and ticket.slot not in self._waiters:
            self._core.unwatch(self._me, ticket.slot)

    def _sweep(self) -> None:
        self._sweeping = None
        if not self._waiters or self._loop is None:
            return
        self._core.arm(self._me)  # who was to ring may be stopped; others shall ring
        for slot in list(self._waiters):
            self._wake_waiters(slot)
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    def _wake_waiters(self, slot: int) -> None:
        for future in self._waiters.get(slot, ()):
            if not future.done():
                future.set_result(None)

    def _forget(self, slot: int, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(slot)
        if waiters is not None:
            waiters.discard(future)
            if not waiters:
                del self._waiters[slot]

    # ---- the doorbell ----

    def _on_bell(self) -> None:
        queue, core, me = self.queue, self._core, self._me
        queue.drain_bell()
        core.arm(me)  # before looking: who ends a message after the look rings again
        ended = core.completions(me)
        while ended:
            for slot in ended:
                self._wake_waiters(slot)
            ended = core.completions(me)
        if self._claimer is not None and not self._claimer.done():
            self._claimer.set_result(None)
        self.custodian.refresh()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the queue is not started on an event loop, or closed")
        return self._loop


def _time_out(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
