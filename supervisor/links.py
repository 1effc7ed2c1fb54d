"""Sockets to the processes below us: lines of JSON, never waited for.

A worker's link says when it is ready, draining and drained, and takes `drain` and `stop`. The
supervisor's end is the worker's lifeline too: its end of file tells a worker that nobody is left
to stop for. The same channel serves the zygote, with a descriptor beside a line.

Sending never blocks the supervisor. What the other side does not read is kept, and it is told
apart from what it cannot read any more (`send` returns False), because then a signal has to do.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from taskiq_supervise.ipc.framing import FramingError, LineDecoder, encode

_PIECE = 65536


class Channel:
    """Our end of a stream socket on the event loop.

    `on_message` gets every object that arrives, `on_end` is called once: with None when the other
    side has closed, with the reason when what it sent was no message.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = LineDecoder()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._reading = False
        self._broken = False

    def start(self) -> None:
        """Begin to read. Until then what arrives waits in the socket."""
        self._reading = True
        self._loop.add_reader(self._sock, self._read)

    def read_rest(self) -> None:
        """Take in what a process that has just ended said before."""
        while self._reading and self._read():
            pass

    def send(self, message: Mapping[str, Any], fds: tuple[int, ...] = ()) -> bool:
        """Queue one message. The descriptors are ours to close from here on."""
        if self._broken or self._sock.fileno() < 0:
            _close(fds)
            return False
        self._unsent.append((encode(message), list(fds)))
        self._flush()
        return not self._broken

    def close(self) -> None:
        self._stop_reading()
        self._drop_unsent()
        self._sock.close()

    def _flush(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:  # the other end is closed; reading says so too, and why
                self._broken = True
                break
            _close(fds)
            if sent < len(data):
                self._unsent[0] = (data[sent:], [])
            else:
                self._unsent.popleft()
        self._drop_unsent()

    def _read(self) -> bool:
        """True: there may be more."""
        try:
            data = self._sock.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._end(None)
            return False
        try:
            messages = self._decoder.feed(data)
        except FramingError as error:
            self._end(str(error))
            return False
        for message in messages:
            self._on_message(message)
        return True

    def _end(self, reason: str | None) -> None:
        self._stop_reading()
        self._on_end(reason)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _drop_unsent(self) -> None:
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        socket.close(fd)
