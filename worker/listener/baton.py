"""Who of several listeners of one pool may fill its queue: the one that holds the baton.

In a reload the next listener is there before the last one leaves. It listens already, and must not
put anything yet, nor can it bind an address that is still in use. Locks of files (flock) tell them
apart: the kernel gives them back with the process that held them, whatever killed it.
"""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

_LOCK, _NEXT = "listener.lock", "listener.next"


class Baton:
    """One listener's hand for it. To be released, held or not."""

    def __init__(self, folder: Path) -> None:
        """folder: the queue's."""
        self._folder = folder
        self._held: int | None = None
        self._announced: int | None = None
        self._released = False

    def try_take(self) -> bool:
        """False: another listener has it, and can see from now on that this one wants it."""
        fd = _opened(self._folder / _LOCK)
        if _locked(fd):
            self._held = fd
            return True
        os.close(fd)
        self._announced = _opened(self._folder / _NEXT)
        # Several may wait. The one who looks has it for itself only while looking.
        fcntl.flock(self._announced, fcntl.LOCK_SH)
        return False

    async def take(self) -> None:
        """Waits for it, after it could not be had at once."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[int] = loop.create_future()
        # There is no other way to wait for a lock of this kind than a thread that does.
        threading.Thread(target=self._wait, args=(loop, taken), name="baton", daemon=True).start()
        await taken
        self._give_way()

    def has_successor(self) -> bool:
        """Another listener wants the baton."""
        fd = _opened(self._folder / _NEXT)
        try:
            return not _locked(fd)
        finally:
            os.close(fd)

    def release(self) -> None:
        """While a thread waits, too: what it takes then, it lets go of."""
        self._released = True
        self._give_way()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _give_way(self) -> None:
        if self._announced is not None:
            os.close(self._announced)
            self._announced = None

    def _wait(self, loop: asyncio.AbstractEventLoop, taken: "asyncio.Future[int]") -> None:
        fd = _opened(self._folder / _LOCK)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            loop.call_soon_threadsafe(self._take, fd, taken)
        except RuntimeError:  # the loop is closed: nobody wants it any more
            os.close(fd)

    def _take(self, fd: int, taken: "asyncio.Future[int]") -> None:
        if self._released or taken.done():
            os.close(fd)
            return
        self._held = fd
        taken.set_result(fd)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
