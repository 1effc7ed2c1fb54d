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
import os
from typing import TYPE_CHECKING, TypeVar

from taskiq_supervise.ipc._core import ENDED, NEWS
from taskiq_supervise.ipc.custodian import Custodian
from taskiq_supervise.ipc.errors import LeaseLost, QueueFull, UnknownTask
from taskiq_supervise.ipc.line import Line
from taskiq_supervise.ipc.model import DEFAULT_PRIORITY
from taskiq_supervise.ipc.waits import SWEEP, OutcomeWaits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from taskiq_supervise.ipc.lease import Lease
    from taskiq_supervise.ipc.model import Outcome, Ticket
    from taskiq_supervise.ipc.queue import TaskQueue

PATIENCE = 0.005
"""Seconds that a rung worker has to come, before another is rung. A wake across CPUs takes about
25 µs on the machines measured."""

DEPTH_PATIENCE = 0.05
"""Seconds that a worker which runs something leaves a message to one that runs nothing. Longer,
because on a busy machine the other one comes late, and not two tasks in one worker is the point."""

_Result = TypeVar("_Result")


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
        self._bell = queue.fileno()
        self._claimer: asyncio.Future[None] | None = None
        self._impatient = False
        self._patience: asyncio.TimerHandle | None = None
        self._passing: asyncio.TimerHandle | None = None
        self._unheard: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line = Line(queue)

    async def start(self) -> None:
        """Listen to the doorbell."""
        loop = self._loop = asyncio.get_running_loop()
        self.custodian = Custodian(self.queue, loop)
        self._waits = OutcomeWaits(self.queue, loop)
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
        for timer in (self._patience, self._passing, self._unheard):
            if timer is not None:
                timer.cancel()
        self._waits.close()
        if self._claimer is not None:
            self._claimer.cancel()
        self._line.close()
        self._loop = None
        self.queue.close()

    def abandon(self) -> None:
        """close() for who is not on the loop any more: it is closed, or another thread's."""
        if self._loop is not None:
            self.custodian.abandon()
            self._waits.abandon()
            self._loop = None
        self.queue.close()

    @property
    def directory(self) -> Path:
        """The queue's folder."""
        return self.queue.directory

    def explain_end(self) -> None:
        """TaskQueue.explain() of this process."""
        self.queue.explain(os.getpid())

    # ---- putting ----

    async def put(
        self,
        task_id: str,
        payload: Buffer,
        *,
        buffers: Sequence[Buffer] = (),
        priority: int = DEFAULT_PRIORITY,
        due: float | None = None,
        expires: float | None = None,
        max_deliveries: int = 0,
        sender: tuple[bytes, int] | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """TaskQueue.put(), waiting while the queue is full.

        Args:
            timeout: seconds to wait for room; None: as long as it takes.

        Raises:
            QueueFull: no room within the timeout.
        """

        def attempt() -> Ticket:
            return self.queue.put(
                task_id, payload, buffers=buffers, priority=priority, due=due, expires=expires,
                max_deliveries=max_deliveries, sender=sender,
            )  # fmt: skip

        loop = self._running()
        try:
            ticket = attempt()
        except QueueFull:
            ticket = await self._when_there_is_room(attempt, timeout)
        if self._passing is None:
            self._passing = loop.call_later(PATIENCE, self._pass_on)
        return ticket

    async def put_many(
        self,
        messages: Sequence[tuple[str, Buffer]],
        *,
        priority: int = DEFAULT_PRIORITY,
        max_deliveries: int = 0,
    ) -> list[Ticket]:
        """TaskQueue.put_many(), waiting while the queue is full, until all are in it."""
        loop = self._running()
        tickets: list[Ticket] = []

        def attempt() -> None:
            rest = messages[len(tickets) :]
            tickets.extend(
                self.queue.put_many(rest, priority=priority, max_deliveries=max_deliveries)
            )
            if len(tickets) < len(messages):
                raise QueueFull("the queue is full")

        try:
            attempt()
        except QueueFull:
            await self._when_there_is_room(attempt, None)
        if self._passing is None:
            self._passing = loop.call_later(PATIENCE, self._pass_on)
        return tickets

    async def acknowledge(self, lease: Lease) -> None:
        """Lease.ack()."""
        lease.ack()

    async def complete(
        self,
        lease: Lease,
        result: Buffer,
        buffers: Sequence[Buffer] = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Lease.complete(), waiting while there is no room for the result. QueueFull: none within
        the timeout; the lease is still held."""
        self._running()
        try:
            lease.complete(result, buffers)
        except QueueFull:
            await self._when_there_is_room(
                lambda: lease.complete(result, buffers), timeout, first=True
            )

    async def _when_there_is_room(
        self, attempt: Callable[[], _Result], timeout: float | None, *, first: bool = False
    ) -> _Result:
        loop = self._running()
        deadline = None if timeout is None else loop.time() + timeout
        turn = self._line.join(first=first)
        try:
            while True:
                try:
                    return attempt()
                except QueueFull as error:
                    try:
                        await turn.wait(deadline)
                    except (TimeoutError, asyncio.TimeoutError):
                        raise QueueFull(
                            f"queue {self.queue.name!r} had no room for {timeout} s ({error}; "
                            f"{self.queue.geometry.slots} slots); start more workers, "
                            "or make the queue larger"
                        ) from error
        finally:
            turn.leave()

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
        lease = self._take()
        while lease is None:
            self._claimer = loop.create_future()
            try:
                await self._claimer
            except asyncio.CancelledError:
                self._stop_looking()
                raise
            finally:
                self._claimer = None
            lease = self._take()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        return lease

    async def listen(self, batch: int = 64) -> AsyncGenerator[list[Lease], None]:
        """Batches of started messages, for who does little with each.

        Takes what is there, up to `batch`, without leaving any of it to workers that have
        nothing; tasks that take time are for claim().
        """
        while True:
            leases = self.queue.claim_many(batch)
            if leases:
                await asyncio.sleep(0)  # others on this loop get their turn between two batches
            else:
                lease = await self.claim()
                try:
                    lease.start()
                except LeaseLost:
                    continue
                leases = [lease, *self.queue.claim_many(batch - 1)]
            yield leases

    def _take(self) -> Lease | None:
        """A lease, or None: announced as asleep."""
        if not self.queue.unfinished or self._impatient:
            self._impatient = False
            return self.queue.claim_or_sleep()
        core, me = self._core, self._me
        core.sleep(me, False)
        ready = core.ready_hints()  # after the announcement: who put before it rings nobody
        empty_others = core.empty_others(me) if ready else 0
        if ready > empty_others:
            # What may have killed its worker is for one that has nothing.
            lease = self.queue.claim_or_sleep(again=not empty_others)
            if lease is not None or not empty_others:
                return lease
        if ready:
            self._leave_to_others()
        return None

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
        self._running()
        return await self._waits.wait(task, timeout)

    async def look(self, task: str | Ticket) -> Outcome | None:
        """TaskQueue.outcome()."""
        return self.queue.outcome(task)

    def is_over(self, task_id: str) -> bool:
        """It has ended, or left the queue."""
        try:
            return self.queue.outcome(task_id) is not None
        except UnknownTask:
            return True

    async def acknowledged(self, ticket: Ticket) -> None:
        """Wait until this very message was acknowledged, or has ended, one way or the other.

        An end wakes at once, an acknowledgement before it is seen within a second.
        """
        self._running()
        await self._waits.acknowledged(ticket)

    # ---- the doorbell ----

    def _on_bell(self) -> None:
        what = self._core.answer(self._me, self._bell)
        if what & ENDED:
            self._waits.ended()
        claimer = self._claimer
        if claimer is not None and not claimer.done():
            claimer.set_result(None)
        if self._line:
            self._line.called()
        if what & NEWS:
            self.custodian.refresh()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the queue is not started on an event loop, or closed")
        return self._loop
