"""The hard time limits of a worker's tasks, as one timer that the worker sets and we wait for.

The worker has the same timerfd and arms it with its earliest deadline. So we are woken exactly
when a task is overdue, even if the worker is blocked or stopped by then, and never before: no
polling of the board, and no message per task.
"""

import asyncio
import os
from collections.abc import Callable

from taskiq_supervise.ipc import timerfd


class DeadlineTimer:
    """One timer for one worker, which arms `fd`. `on_due` is called from the loop.

    OSError: no descriptors left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self.fd = timerfd.create()
        loop.add_reader(self.fd, self._due)

    def close(self) -> None:
        if self.fd >= 0:
            self._loop.remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _due(self) -> None:
        try:
            os.read(self.fd, 8)
        except BlockingIOError:  # the worker has set it anew since it rang
            return
        self._on_due()
