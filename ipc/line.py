"""Waiting for room: this process's place in the line of those who found the queue full.

In front of the queue stands each process once; inside the process, callers stand in line here. The
first one looks again whenever the process is called, and once a second by itself, because who was
called before may be stopped. Who got what it wanted calls the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskiq_supervise.ipc.queue import TaskQueue

LOOK_AGAIN = 1.0
"""Seconds."""


class Line:
    """The callers of this process that wait for room."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._turns: deque[Turn] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self._turns)

    def join(self, *, first: bool = False) -> Turn:
        """Get in line; then try again, and wait() only if that fails too.

        first: before the others of this process, who may be waiting for what only this one frees.
        """
        turn = Turn(self)
        if first:
            self._turns.appendleft(turn)
        else:
            self._turns.append(turn)
        self.announce()
        self._look_again_later()
        return turn

    def _look_again_later(self) -> None:
        if self._timer is None and self._turns:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if self._turns:
            self._turns[0].wake()
            self._look_again_later()

    def announce(self) -> None:
        self._queue.core.queue_up(self._queue.participant)

    def called(self) -> None:
        """The doorbell rang."""
        if self._turns and not self._queue.core.is_waiting(self._queue.participant):
            self._turns[0].wake()

    def leave(self, turn: Turn) -> None:
        """It has got what it wanted, or gave up: the next one in here may look, or elsewhere."""
        self._turns.remove(turn)
        queue = self._queue
        if not self._turns and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if queue.closed:
            return
        if self._turns:
            self._turns[0].wake()
        else:
            queue.core.step_out(queue.participant)
            queue.ring_watchers(queue.core.call_next())

    def close(self) -> None:
        for turn in self._turns:
            turn.cancel()


class Turn:
    """One caller's place."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, deadline: float | None) -> None:
        """Until it is worth another try. TimeoutError: the loop's time has passed `deadline`."""
        loop = asyncio.get_running_loop()
        if deadline is not None and loop.time() >= deadline:
            raise TimeoutError
        timer = None if deadline is None else loop.call_at(deadline, self.wake)
        try:
            await self._future
        finally:
            if timer is not None:
                timer.cancel()
        self._future = loop.create_future()
        self._line.announce()  # before the try: room that is made after it is told to us

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def cancel(self) -> None:
        self._future.cancel()

    def leave(self) -> None:
        self._line.leave(self)
