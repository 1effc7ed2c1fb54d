"""The attachments of one broker in this process, one per event loop, and who still wants them.

Programs start a broker more often than once: an application and a library in it, a task that wraps
its body in `async with broker`, a sync task that does so on a loop of its own. So startups are
counted per loop, and each shutdown undoes one. What the code of a task starts is counted apart: it
may undo that, never what its worker started, and what it forgot keeps no worker from shutting down.

A startup that nobody undid outlives its loop, and a fork: the broker counts as started then, and
attaches for whichever loop uses it next.
"""

import asyncio
import os
import threading
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from taskiq_supervise.broker.delivery import current_delivery


class Attached(Protocol):
    """What a broker has opened for one event loop."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    async def close(self) -> None:
        """Called on any loop; `loop` may be closed by then."""
        ...


_Attachment = TypeVar("_Attachment", bound=Attached)


@dataclass(eq=False)
class LoopUse(Generic[_Attachment]):
    """What one event loop has of the broker."""

    attachment: _Attachment | None = None
    startups: int = 0
    startups_by_tasks: int = 0

    @property
    def wanted(self) -> bool:
        return self.startups + self.startups_by_tasks > 0


class Attachments(Generic[_Attachment]):
    """The books. Opening an attachment, and taskiq's events, are the broker's."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._uses: dict[asyncio.AbstractEventLoop, LoopUse[_Attachment]] = {}
        self._left_started = False
        self._lock = threading.Lock()
        """Two threads may start the broker at once, and one of them has to be the first."""

    def __reduce__(self) -> "tuple[type[Attachments[_Attachment]], tuple[()]]":
        """The copy of a broker has none."""
        return Attachments, ()

    def here(self) -> _Attachment | None:
        """That of the running loop."""
        self._notice_fork()
        use = self._uses.get(asyncio.get_running_loop())
        return None if use is None else use.attachment

    @property
    def elsewhere(self) -> bool:
        """Another loop of this process has one."""
        self._notice_fork()
        here = asyncio.get_running_loop()
        return any(loop is not here and not loop.is_closed() for loop in list(self._uses))

    @property
    def may_adopt(self) -> bool:
        """It was started by a parent or on loops that are closed, and is wanted on none now."""
        return self._left_started and not self.elsewhere

    def put(self, attachment: _Attachment) -> None:
        self._uses.setdefault(attachment.loop, LoopUse()).attachment = attachment

    def begin(self) -> bool:
        """Counts a startup on the running loop. True: it is the first in this process."""
        self._notice_fork()
        with self._lock:
            first = not any(use.wanted for use in self._uses.values())
            use = self._uses.setdefault(asyncio.get_running_loop(), LoopUse())
            if current_delivery.get() is None:
                use.startups += 1
            else:
                use.startups_by_tasks += 1
            return first

    def end(self) -> bool | None:
        """Takes a startup back. True: it was the last; None: there was none to take back."""
        self._notice_fork()
        with self._lock:
            use = self._uses.get(asyncio.get_running_loop(), LoopUse())
            if current_delivery.get() is not None:
                if not use.startups_by_tasks:
                    return None
                use.startups_by_tasks -= 1
                return not any(each.wanted for each in self._uses.values())
            if use.startups:
                use.startups -= 1
                return not any(each.startups for each in self._uses.values())
            if self._left_started and not any(each.wanted for each in self._uses.values()):
                return True
            return None

    async def close_here(self) -> None:
        """Closes the running loop's, unless it was started again meanwhile."""
        await self._close(asyncio.get_running_loop())

    async def close_all(self) -> None:
        """After the last shutdown: all but what other loops still want or are using now."""
        self._left_started = False
        here = asyncio.get_running_loop()
        own = self._uses.get(here)
        if own is not None:
            own.startups_by_tasks = 0  # its worker is gone
        for loop, use in list(self._uses.items()):
            if loop is here or loop.is_closed() or not (use.wanted or loop.is_running()):
                await self._close(loop)

    async def discard_closed(self) -> None:
        """Loops end without a shutdown: `asyncio.run(task.kiq())`, once per call of a program."""
        self._notice_fork()
        for loop in [loop for loop in list(self._uses) if loop.is_closed()]:
            use = self._uses.pop(loop, None)
            if use is None:  # another thread was faster
                continue
            if use.wanted:
                self._left_started = True
            if use.attachment is not None:
                await use.attachment.close()

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        use = self._uses.get(loop)
        if use is None or use.wanted:
            return
        del self._uses[loop]
        if use.attachment is not None:
            await use.attachment.close()

    def _notice_fork(self) -> None:
        """What is a parent's is let go of without a touch: it is in use there."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._left_started = self._left_started or any(use.wanted for use in self._uses.values())
        self._uses = {}
