"""One supervisor per endpoint and host: whoever listens to an address holds a name for it.

Two listeners on one publisher would each get every task. The name is that of an abstract Unix
socket, which the kernel gives away when its holder dies, however it dies, and which has one holder
per network namespace, as an address has. Whoever finds it taken connects, and is told by whom.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import socket
import struct
from collections.abc import Iterable

logger = logging.getLogger("taskiq_supervise.endpoints")

_PREFIX = "\0taskiq-supervise/endpoint/"
# unix(7): of sun_path, with the zero byte that makes a name abstract.
_ROOM = 108
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_PATIENCE = 1.0
"""Seconds for a holder to say its name; it may be stopped. Who it is the kernel says."""
_TRIES = 3
_LONGEST_ANSWER = 4096
_ACCEPT_AGAIN = 1.0


class EndpointTaken(Exception):
    """Somebody else listens there. name: of its instance, empty if it does not say; pid: 0 if it
    cannot be seen from here."""

    def __init__(self, endpoint: str, name: str, pid: int) -> None:
        who = f"the supervisor {name!r}" if name else "another supervisor, which does not answer,"
        if pid == os.getpid():
            who = "another pool of this instance"
        super().__init__(f"{endpoint} is served by {who} (pid {pid or 'unknown'}) already")
        self.endpoint = endpoint
        self.name = name
        self.pid = pid


class Endpoints:
    """Those that a pool holds. Lives on the loop that takes them."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket] = {}

    async def take(self, endpoints: Iterable[str], name: str) -> None:
        """All of them or none; those that are held stay so. name: of this instance.

        Raises EndpointTaken, OSError.
        """
        before = set(self._held)
        try:
            for endpoint in endpoints:
                if endpoint not in self._held:
                    self._held[endpoint] = await _take(endpoint)
                    self._answer(self._held[endpoint], name)
        except BaseException:
            self.keep(before)
            raise

    def keep(self, endpoints: Iterable[str]) -> None:
        """Only those; the others are anybody's."""
        for endpoint in set(self._held) - set(endpoints):
            sock = self._held.pop(endpoint)
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def close(self) -> None:
        self.keep(())

    def _answer(self, sock: socket.socket, name: str) -> None:
        """Tell everybody who asks, for as long as it is held."""
        line = json.dumps({"name": name, "pid": os.getpid()}).encode() + b"\n"
        loop = asyncio.get_running_loop()

        def listen() -> None:
            if sock.fileno() >= 0:
                loop.add_reader(sock, accept)

        def accept() -> None:
            try:
                asking, _ = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors left: it would come again at once
                logger.warning("cannot say who serves an endpoint: %s", error)
                loop.remove_reader(sock)
                loop.call_later(_ACCEPT_AGAIN, listen)
                return
            with asking:
                asking.setblocking(False)
                try:
                    asking.send(line)
                except OSError as error:
                    logger.debug("somebody asked who serves an endpoint, and left: %s", error)

        listen()


async def _take(endpoint: str) -> socket.socket:
    address = _address(endpoint)
    for _ in range(_TRIES):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(address)
            sock.listen()
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return sock
        holder = await _ask(address)
        if holder is not None:
            raise EndpointTaken(endpoint, *holder)
    raise EndpointTaken(endpoint, "", 0)


async def _ask(address: str) -> tuple[str, int] | None:
    """The name and pid of who holds it; None: it does not any more."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(address)
        except ConnectionRefusedError:
            return None
        except OSError as error:  # others ask, more than it takes
            logger.debug("who serves an endpoint cannot be asked: %s", error)
            return "", 0
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = int(_CREDENTIALS.unpack(raw)[0])
        if pid == os.getpid():
            return "", pid
        try:
            said = await asyncio.wait_for(_read_line(loop, sock), _PATIENCE)
        except (TimeoutError, asyncio.TimeoutError, OSError):
            return "", pid
    try:
        answer = json.loads(said)
        return str(answer["name"]), pid or int(answer["pid"])
    except (ValueError, KeyError, TypeError):
        return "", pid


async def _read_line(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\n") and len(said) < _LONGEST_ANSWER:
        piece = await loop.sock_recv(sock, _LONGEST_ANSWER)
        if not piece:
            break
        said += piece
    return said


def _address(endpoint: str) -> str:
    address = _PREFIX + endpoint
    if len(address.encode()) > _ROOM:
        return _PREFIX + hashlib.sha256(endpoint.encode()).hexdigest()
    return address
