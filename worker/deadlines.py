"""Hard time limits: when each task has to be over, said where the supervisor sees it.

Nothing in this process can end a sync task, nor anything at all while its loop is blocked. The
supervisor can, by this process's death. So a task's deadline stands on the board, and the timerfd
that the supervisor polls is set to the earliest of them. It is set anew only when what it was set
to has passed or is later: tasks with the same limit cost a system call per limit, not per task.

When it rings, the supervisor looks at the whole board, and sees to what is due later by a timer of
its own. Nobody else sets this one, so a task that begins after the ring sets it again, and one that
began before it has been seen.

A sync task waits until a thread or process is free for it, which is not its fault: its time begins
there.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from taskiq_supervise.ipc import BoardWriter, timerfd

logger = logging.getLogger("taskiq_supervise.worker")


class Deadlines:
    """Those of one worker. Made on its loop."""

    def __init__(
        self, board: BoardWriter, timer: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """timer: the timerfd. clock: CLOCK_MONOTONIC, as that is."""
        self._board = board
        self._clock = clock
        self._timer = timer
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, Deadline] = {}
        self._armed = -math.inf

    def add(
        self, entry: int, limit: float, on_overdue: Callable[[], None] | None = None
    ) -> "Deadline":
        """For the task of that entry on the board. limit: seconds.

        on_overdue: called on the loop, if it still turns then.
        """
        if entry < 0:
            logger.warning("The board is full: nobody watches over the time of one task more")
        deadline = Deadline(self, next(self._numbers), entry, limit, on_overdue)
        self._open[deadline.number] = deadline
        return deadline

    def begin(self, number: int) -> None:
        """The task of that number begins, unless it is over. From any thread."""
        with self._lock:
            deadline = self._open.get(number)
            if deadline is None or deadline.entry < 0:
                return
            deadline.at = self._clock() + deadline.limit
            self._board.set_deadline(deadline.entry, deadline.at)
            # After it stands on the board: what was set and has not passed will see it there.
            if not self._clock() < self._armed <= deadline.at:
                self._armed = min(other.at for other in self._open.values())
                timerfd.arm(self._timer, self._armed)
        if deadline.on_overdue is not None:
            self._loop.call_soon_threadsafe(self._watch, deadline)

    def end(self, number: int) -> None:
        """Before the task's entry on the board is free for another."""
        with self._lock:
            deadline = self._open.pop(number)
        if deadline.alarm is not None:
            deadline.alarm.cancel()

    def _watch(self, deadline: "Deadline") -> None:
        if deadline.number in self._open and deadline.on_overdue is not None:
            left = max(0.0, deadline.at - self._clock())
            deadline.alarm = self._loop.call_later(left, deadline.on_overdue)


class Deadline:
    """One task's."""

    __slots__ = ("_all", "alarm", "at", "entry", "limit", "number", "on_overdue")

    def __init__(
        self,
        all_: Deadlines,
        number: int,
        entry: int,
        limit: float,
        on_overdue: Callable[[], None] | None,
    ) -> None:
        self._all = all_
        self.number = number
        self.entry = entry
        self.limit = limit
        self.on_overdue = on_overdue
        self.at = math.inf
        """CLOCK_MONOTONIC; infinite until the task begins."""
        self.alarm: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._all.begin(self.number)

    def end(self) -> None:
        self._all.end(self.number)

    def from_its_thread(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """What to run in a thread, so that the time counts from there."""
        return partial(_begin_and_run, self, target)


def _begin_and_run(deadline: Deadline, target: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    deadline.begin()
    return target(*args, **kw)
