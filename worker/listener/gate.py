"""Who may connect to our server, and how much one client, or all of them, may ask of it.

Whatever comes over the network is bounded here, so that neither a broken nor a hostile client costs
the others their service. A limit that is hit ends that one client's connection, never the server.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zmq.auth.asyncio import AsyncioAuthenticator

if TYPE_CHECKING:
    import zmq

    from taskiq_supervise.broker.zeromq.keys import AllowList

logger = logging.getLogger("taskiq_supervise.listener")

DOMAIN = b"taskiq-supervise"


def _half_of_the_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for, unless it says otherwise.

    Attributes:
        window: puts that the queue has not taken yet.
        window_bytes: bytes of these; one larger message alone is allowed.
        least_window_bytes: the same for a client that comes when `total_bytes` are promised.
        total_bytes: promised to all clients together, but for what the least windows take.
        waits: outcomes that are waited for at once.
        total_waits: the same for all clients; each takes some 3 KB here.
        unsent_bytes: of large results that a slow client has not read yet; further ones stay where
            they are until it has.
        clients: known at once.
        backlog: messages to one client that it has not read yet, before it counts as gone.
        heartbeat: seconds of silence after which either side says that it is there.
        handshake: seconds that a connection has to become one of ZeroMQ's.
        memory: bytes of its own (not of the queue) with which the server gives up and starts anew:
            libzmq holds a message that never ends until it does.
    """

    window: int = 1024
    window_bytes: int = 64 << 20
    least_window_bytes: int = 256 << 10
    total_bytes: int = 1 << 30
    waits: int = 32_768
    total_waits: int = 65_536
    unsent_bytes: int = 64 << 20
    clients: int = 4096
    backlog: int = 8192
    heartbeat: float = 5.0
    handshake: float = 5.0
    memory: int = _half_of_the_memory()

    @property
    def silence(self) -> float:
        """Seconds after which a client that says nothing is gone."""
        return 3 * self.heartbeat


class Promises:
    """Bytes that were promised to clients as their windows: what is left becomes less for each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._promised = 0

    def make(self) -> int:
        limits = self._limits
        left = (limits.total_bytes - self._promised) // 4
        size = min(limits.window_bytes, max(limits.least_window_bytes, left))
        self._promised += size
        return size

    def end(self, size: int) -> None:
        self._promised -= size


class Gate:
    """Answers libzmq's question whether a client's CURVE key is one of those that are allowed.

    It is asked in each handshake, and the list reads its folder anew: a key that is added or taken
    away counts from the next connection on.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", allowed: "AllowList") -> None:
        self._allowed = allowed
        self._authenticator = AsyncioAuthenticator(context)
        self._authenticator.configure_curve_callback(DOMAIN.decode(), self)

    def open(self) -> None:
        """On a running loop. Before the socket is bound: else libzmq lets everybody in."""
        self._authenticator.start()

    def callback(self, domain: str, key: bytes) -> bool:
        """The authenticator calls it, with the key in Z85; an exception would be its end."""
        try:
            return self._allowed.allows(key)
        except Exception:
            logger.exception("The list of allowed clients cannot be used")
            return False

    def close(self) -> None:
        self._authenticator.stop()


def own_memory() -> int:
    """Bytes of this process that are not files' or shared with others."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
