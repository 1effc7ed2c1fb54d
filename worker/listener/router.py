"""The ROUTER socket on an event loop: messages in, in batches, and messages out, without waiting.

zmq.asyncio makes a future per message; that alone took longer than the rest. So the loop watches
the socket's descriptor, which is edge-triggered: it becomes readable when something has happened,
not as long as something is there. Whoever touches the socket may swallow that edge, so after each
send there is another look at it.

Frames are received one by one: recv_multipart() takes three times as long, and only what is large
is worth not being copied.
"""

import asyncio
import contextlib
import enum
import errno
import logging
import os
import socket as sockets
import stat
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from taskiq_supervise.broker.payload import LARGE
from taskiq_supervise.worker.listener.gate import DOMAIN, Gate, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from taskiq_supervise.broker.zeromq.settings import ListenerSettings

logger = logging.getLogger("taskiq_supervise.listener")

BATCH = 128
"""Messages, before others on the loop get their turn."""
MAX_FRAMES = 65_536
LINGER = 500
"""Milliseconds in which close() sends what was said last."""
_NOW = int(zmq.DONTWAIT)
_NOW_AND_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_IPC = "ipc://"
_HOPELESS = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EEXIST, errno.EINVAL, errno.ENAMETOOLONG)
)


class UnusableAddress(OSError):
    """It cannot be bound, and will not be by waiting: no such folder, for example."""


class Sent(enum.Enum):
    """What became of a message."""

    YES = enum.auto()
    FULL = enum.auto()
    """The client does not read what it was sent before."""
    GONE = enum.auto()
    """There is no such connection any more."""


class Router:
    """One bound ROUTER. Belongs to the running loop.

    Args:
        on_message: called with the connection's name, the frames after it, their bytes, and
            whether they are complete. They are not when a message is larger, or has more of them,
            than it may; then only the first are kept. Must not raise.
        on_failure: the socket cannot be read any more, and why.
    """

    def __init__(
        self,
        settings: "ListenerSettings",
        limits: Limits,
        on_message: "Callable[[bytes, list[Buffer], int, bool], None]",
        on_failure: "Callable[[BaseException], None]",
    ) -> None:
        self._endpoint = settings.bind
        self._max_message = settings.max_message
        self._on_message = on_message
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._unsent = _Unsent(limits.unsent_bytes)
        self._gate: Gate | None = None
        self._inode: int | None = None
        """Of the socket file that we have made."""
        self._looking = False
        """A look at the socket is under way, or asked for."""
        self._reading = False
        self._closing: asyncio.Future[None] | None = None
        self._configure(settings, limits)

    def _configure(self, settings: "ListenerSettings", limits: Limits) -> None:
        milliseconds = round(limits.heartbeat * 1000)
        options = {
            zmq.ROUTER_MANDATORY: 1,
            zmq.LINGER: LINGER,
            zmq.MAXMSGSIZE: settings.max_message,
            # Per connection, and both are never reached by a client that keeps to its window.
            zmq.RCVHWM: 2 * limits.window,
            zmq.SNDHWM: limits.backlog,
            zmq.BACKLOG: 1024,
            zmq.HANDSHAKE_IVL: round(limits.handshake * 1000),
            # The other end may be gone without a word; nobody else would close that descriptor.
            zmq.HEARTBEAT_IVL: milliseconds,
            zmq.HEARTBEAT_TIMEOUT: 3 * milliseconds,
            zmq.IPV6: int(settings.is_ipv6),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        keys = settings.server_keys
        if keys is not None:
            self._socket.curve_server = True
            self._socket.curve_publickey = keys.public
            self._socket.curve_secretkey = keys.secret
        if settings.clients is not None:
            self._socket.zap_domain = DOMAIN
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            self._gate = Gate(self._context, settings.clients)

    # --- binding -----------------------------------------------------------------------------

    def bind(self) -> None:
        """Raises OSError, UnusableAddress too. Messages are received from start() on."""
        if self._gate is not None:
            self._gate.open()
        path = self._path
        mask = os.umask(0o177)
        try:
            if path is not None:
                # libzmq would remove whatever has that name, a living server's socket too.
                _check_free(path)
            self._socket.bind(self._endpoint)
        except (OSError, zmq.ZMQError) as error:
            raise _not_bound(error, self._endpoint) from error
        finally:
            os.umask(mask)
        if path is not None:
            self._inode = path.stat().st_ino

    @property
    def endpoint(self) -> str:
        """Where it is bound, with the port that was chosen if the given one was `*`."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def _path(self) -> Path | None:
        """Of the socket file, if there is to be one."""
        is_file = self._endpoint.startswith(_IPC) and not self._endpoint.startswith(f"{_IPC}@")
        return Path(self._endpoint.removeprefix(_IPC)) if is_file else None

    def _remove_file(self) -> None:
        """libzmq leaves it. Another's that has taken its place is not ours to remove."""
        if self._path is None or self._inode is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    # --- receiving ---------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._reading = True
        self._look()

    def _look(self) -> None:
        if not self._looking and self._reading:
            self._looking = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        if not self._reading:
            return
        self._looking = True  # what is sent meanwhile swallows nothing that is not read here
        try:
            for _ in range(BATCH):
                self._read_one()
        except zmq.Again:
            self._looking = False
        except zmq.ZMQError as error:
            self._stop_reading()
            self._on_failure(error)
        else:
            self._loop.call_soon(self._read)

    def _read_one(self) -> None:
        receive = self._socket.recv
        frame: zmq.Frame = receive(_NOW, False)
        route = frame.bytes
        frames: list[Buffer] = []
        size = 0
        fits = True
        while frame.more:
            frame = receive(_NOW, False)
            size += len(frame)
            if size > self._max_message or len(frames) > MAX_FRAMES:
                fits = False
            if fits or len(frames) < 2:
                frames.append(frame.bytes if len(frame) < LARGE else frame.buffer)
        self._on_message(route, frames, size, fits)

    # --- sending -----------------------------------------------------------------------------

    def send(self, route: bytes, frames: "Sequence[Buffer]") -> Sent:
        """Hands a message to libzmq, or tells why not; never waits. Large frames are not copied."""
        # Before the fourth there is nothing but heads.
        large = sum(size for size in map(_size, frames[3:]) if size >= LARGE)
        if large and not self._unsent.takes(route, large):
            return Sent.FULL
        send = self._socket.send
        last = len(frames) - 1
        try:
            send(route, _NOW_AND_MORE)
            for index, frame in enumerate(frames):
                flags = _NOW if index == last else _NOW_AND_MORE
                if not large or _size(frame) < LARGE:
                    send(frame, flags)
                else:
                    tracker = send(frame, flags, copy=False, track=True)
                    self._unsent.add(route, tracker, _size(frame))
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                return Sent.GONE
            raise
        finally:
            self._look()
        return Sent.YES

    def tidy(self) -> None:
        """Forgets what has been sent; to be called now and then."""
        self._unsent.tidy()

    # --- ending ------------------------------------------------------------------------------

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    async def close(self) -> None:
        """Returns when the port, or the name of the socket file, is free for another."""
        if self._closing is None:
            self._stop_reading()
            if self._gate is not None:
                self._gate.close()
            self._remove_file()
            self._socket.close()
            # Waits for what lingers, and until libzmq has closed the listening socket.
            self._closing = self._loop.run_in_executor(None, self._context.term)
        await asyncio.shield(self._closing)


class _Unsent:
    """Large frames that libzmq still has, by connection: what a client does not read is bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._frames: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}

    def takes(self, route: bytes, size: int) -> bool:
        """One message may be larger than all of them together may be."""
        frames = self._frames.get(route)
        if not frames:
            return True
        while frames and frames[0][0].done:
            frames.popleft()
        return not frames or size + sum(size for _, size in frames) <= self._most

    def add(self, route: bytes, tracker: zmq.MessageTracker, size: int) -> None:
        self._frames.setdefault(route, deque()).append((tracker, size))

    def tidy(self) -> None:
        for route in list(self._frames):
            if self.takes(route, 0) and not self._frames[route]:
                del self._frames[route]


def _size(frame: "Buffer") -> int:
    return memoryview(frame).nbytes


def _not_bound(error: OSError | zmq.ZMQError, endpoint: str) -> OSError:
    """The same, with the address once: ZeroMQ writes it into its text."""
    number = error.errno or 0
    text = error.strerror if isinstance(error, OSError) else zmq.strerror(number)
    kind = UnusableAddress if number in _HOPELESS else OSError
    return kind(number, text, endpoint)


def _check_free(path: Path) -> None:
    """Raises OSError unless there is nothing at `path`, or a socket that nobody listens on."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something that is no socket has this name")
    with sockets.socket(sockets.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # left by one that was killed
        except BlockingIOError:
            pass  # so many are waiting for it that we would have to
    raise OSError(errno.EADDRINUSE, "another server listens on it")
