"""A worker's link to its supervisor: events go up, orders come down, its end means stop."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from taskiq_supervise.ipc.framing import FramingError, LineDecoder, send

logger = logging.getLogger("taskiq_supervise.worker")


class Link:
    """The worker's end of a socket pair, made by the supervisor for this worker alone."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._decoder = LineDecoder()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def ended(self) -> bool:
        """The supervisor has closed its end, or is gone.

        The kernel closes a dying process's sockets before it gives its children another parent.
        """
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def say(self, event: str, **details: Any) -> None:
        """Messages are few and small: they fit into the socket's buffer."""
        try:
            send(self._socket, {"event": event, **details})
        except OSError as error:  # the supervisor is gone; the end of the link says so, too
            logger.debug("The supervisor does not hear %r: %s", event, error)

    def listen(
        self,
        on_order: Callable[[str], None],
        on_end: Callable[[], None],
        on_gone: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Calls back on the running loop: for each order, and when the supervisor is gone.

        on_gone: with what is said of each worker that was buried; only listeners are told.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._receive, loop, on_order, on_end, on_gone)

    def _receive(
        self,
        loop: asyncio.AbstractEventLoop,
        on_order: Callable[[str], None],
        on_end: Callable[[], None],
        on_gone: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        try:
            data = self._socket.recv(65536)
            orders = self._decoder.feed(data)
        except ConnectionResetError:  # killed with something of ours unread: as good as its end
            data, orders = b"", []
        except (OSError, FramingError) as error:
            logger.error("The link to the supervisor broke: %s", error)
            data, orders = b"", []
        for order in orders:
            if order.get("op") != "gone":
                on_order(str(order.get("op")))
            elif on_gone is not None:
                on_gone(order)
        if not data:
            loop.remove_reader(self._socket)
            on_end()
