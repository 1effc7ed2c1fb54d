"""What we have of one worker: its process, our end of its link, its timer, its stacks."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from taskiq_supervise.supervisor.deadlines import DeadlineTimer
from taskiq_supervise.supervisor.links import Channel
from taskiq_supervise.supervisor.processes import Child
from taskiq_supervise.supervisor.stacks import StackReader

# A worker that is to be killed has so many seconds to say where it stands; milliseconds do.
_STACKS_PATIENCE = 0.5


class WorkerProcess:
    """Made before the fork, with nothing but descriptors; `adopted` when its process exists."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_message: Callable[[dict[str, Any]], None],
        on_link_end: Callable[[str | None], None],
        on_due: Callable[[bool], None],
        on_stacks: Callable[[str], None],
    ) -> None:
        """Raises OSError when there are no descriptors left."""
        self.child: Child | None = None
        self._loop = loop
        self._on_due = on_due
        self._next_look: asyncio.TimerHandle | None = None
        self._on_stacks = on_stacks
        self._killing: asyncio.TimerHandle | None = None
        # Should there be none left when the worker is there, it could not be watched.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        with ExitStack() as undo:
            undo.callback(self.make_room)
            ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(ours.close)
            undo.callback(self._theirs.close)
            self._timer = DeadlineTimer(loop, partial(on_due, True))
            undo.callback(self._timer.close)
            self._stacks = StackReader(loop, self._stacks_came)
            undo.pop_all()
        self.link = Channel(loop, ours, on_message, on_link_end)

    def hand_over(self) -> tuple[int, int, int]:
        """The worker's descriptors: link, pipe, timer. To be closed by whoever gets them.

        Raises OSError when there are no descriptors left.
        """
        timer = os.dup(self._timer.fd)
        try:
            stacks = os.dup(self._stacks.write_fd)
        except OSError:
            os.close(timer)
            raise
        self._stacks.release()
        return self._theirs.detach(), stacks, timer

    def make_room(self) -> None:
        """For the descriptor that `adopted` brings along."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def adopted(self, child: Child) -> None:
        """From here on it is ours; until it has heard that, it takes no task."""
        self.child = child
        self.link.start()
        self.link.send({"op": "go"})

    def look_again_at(self, at: float) -> None:
        """Calls `on_due` then with False; with True when the timer rings that the worker sets."""
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = self._loop.call_at(at, self._on_due, False)

    def ask_for_stacks(self) -> None:
        """They come, if they come, to `on_stacks`."""
        if self.child is not None:
            self.child.signal(signal.SIGUSR1)
            self.link.send({"op": "tasks"})

    def kill(self, *, dump: bool) -> None:
        """SIGKILL its group; `dump`: when its stacks are there, or at once the second time."""
        if self.child is None:
            return
        if dump and self._killing is None:
            self._killing = self._loop.call_later(_STACKS_PATIENCE, self.child.kill_group)
            self.ask_for_stacks()
        else:
            self.child.kill_group()

    def close(self) -> None:
        for timer in (self._killing, self._next_look):
            if timer is not None:
                timer.cancel()
        self.make_room()
        self.link.close()
        self._timer.close()
        self._stacks.close()
        self._theirs.close()

    def _stacks_came(self, text: str) -> None:
        self._on_stacks(text)
        if self._killing is not None and self.child is not None:
            self._killing.cancel()
            self.child.kill_group()
