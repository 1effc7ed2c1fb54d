"""The stacks of a worker's threads, on their way into our log.

On SIGUSR1 a worker's faulthandler writes them into a pipe, from the C signal handler, so that a
loop which is blocked tells as well where. The dump has no end mark: it is over when nothing more
comes for a moment.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

_QUIET = 0.05
_PIECE = 65536
# faulthandler's limit of 100 frames and 100 threads can make about 1 MB; what does not fit into the
# pipe at once is lost, since the worker must not wait for us. The usual 64 KiB hold 8 deep threads.
_PIPE_SIZE = 256 * 1024
_TEXT_LIMIT = 1024 * 1024


class StackReader:
    """One pipe for one worker. `on_stacks` gets the text of a dump, from the loop.

    OSError: no descriptors left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_stacks: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_stacks = on_stacks
        self._read_fd, self.write_fd = os.pipe()
        """`write_fd` is for the worker; it never blocks. Close ours with `release`."""
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self.write_fd, False)
        with suppress(PermissionError):  # this user has many large pipes already: then a small one
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._text = bytearray()
        self._quiet: asyncio.TimerHandle | None = None
        self._reading = True
        loop.add_reader(self._read_fd, self._read)

    def release(self) -> None:
        """Close our copy of the writing end, once the worker has its own."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        """Deliver what has arrived, then let go of both ends."""
        if self._read_fd < 0:
            return
        while self._reading and self._read():
            pass
        self._deliver()
        self._stop_reading()
        os.close(self._read_fd)
        self._read_fd = -1
        self.release()

    def _read(self) -> bool:
        """True: there may be more."""
        try:
            piece = os.read(self._read_fd, _PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._stop_reading()
            return False
        self._text += piece
        if self._quiet is not None:
            self._quiet.cancel()
        if len(self._text) >= _TEXT_LIMIT:
            self._deliver()
        else:
            self._quiet = self._loop.call_later(_QUIET, self._deliver)
        return True

    def _deliver(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if self._text:
            text = self._text.decode(errors="replace")
            self._text.clear()
            self._on_stacks(text)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._read_fd)
