"""Endpoints: which ones the broker knows, which are safe, and how they are written in one way.

What reaches the listener's socket may put tasks into the queue. So without keys it listens where
only this machine reaches it, or not at all: a default that opens a port to everybody would be run
by those who have never thought about it.
"""

import ipaddress
import os
import re
from dataclasses import dataclass

from taskiq_supervise.broker.errors import UnsuitableBrokerError

CLASS = "taskiq_supervise.ZeroMQBroker"
_LOCAL = "127.0.0.1"
_MAX_SOCKET_PATH = 107
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Endpoint:
    """One address, taken apart. host is empty for ipc, path for tcp."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def of(cls, text: str) -> "Endpoint":
        """Raises ValueError for what is neither tcp:// nor ipc://, or has no port of its own."""
        if text.startswith("ipc://"):
            return cls(path=_socket_path(text))
        match = _TCP.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no address for {CLASS}: use tcp://127.0.0.1:5555, tcp://[::1]:5555 "
                "or ipc:///path/to/a/socket"
            )
        host, port = match["host"], int(match["port"])
        if not 0 < port < 65536:
            raise ValueError(f"{text!r} has the port {port}: clients could not know which it is")
        host = _LOCAL if host == "localhost" else "0.0.0.0" if host == "*" else host
        if host.startswith("["):
            try:
                host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
            except ValueError:
                raise ValueError(f"{text!r} has no IPv6 address in its brackets") from None
        return cls(host, port)

    def __str__(self) -> str:
        return f"ipc://{self.path}" if self.path else f"tcp://{self.host}:{self.port}"

    @property
    def is_tcp(self) -> bool:
        return bool(self.host)

    @property
    def is_ipv6(self) -> bool:
        return self.host.startswith("[")

    @property
    def is_everywhere(self) -> bool:
        """All addresses of the machine."""
        return self.host in {"0.0.0.0", "[::]"}

    @property
    def is_local(self) -> bool:
        """Only this machine reaches it."""
        if not self.is_tcp:
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name, which may lead anywhere
            return False

    @property
    def is_private(self) -> bool:
        """Only this user reaches it: a socket file. An abstract one is everybody's."""
        return bool(self.path) and not self.path.startswith("@")

    def on_loopback(self) -> "Endpoint":
        """The same port, where only this machine reaches it."""
        return Endpoint("[::1]" if self.is_ipv6 else _LOCAL, self.port)


def to_bind(endpoint: Endpoint, *, is_default: bool, secured: bool) -> tuple[Endpoint, str]:
    """Where the listener binds, and what there is to say about that, or nothing.

    is_default: nobody has chosen it. secured: with keys, or insecure on purpose.
    Raises UnsuitableBrokerError.
    """
    if endpoint.is_local or secured:
        return endpoint, ""
    if is_default:
        narrowed = endpoint.on_loopback()
        return narrowed, (
            f"{endpoint} is narrowed to {narrowed}, which only this machine reaches, "
            "because the broker has no keys (see `taskiq-supervise keygen`)"
        )
    raise UnsuitableBrokerError(broker=CLASS, reason=_open(endpoint, "listening on"))


def to_connect(endpoint: Endpoint, *, secured: bool) -> Endpoint:
    """Where clients connect to. Raises UnsuitableBrokerError."""
    if endpoint.is_local or secured:
        return endpoint
    raise UnsuitableBrokerError(broker=CLASS, reason=_open(endpoint, "sending to"))


def _open(endpoint: Endpoint, what: str) -> str:
    return (
        f"{what} {endpoint} without keys lets everybody in that network send tasks or read them; "
        "give it keys (see `taskiq-supervise keygen`), an address of this machine such as "
        f"tcp://{_LOCAL}:{endpoint.port}, or insecure=True if you trust that network"
    )


def _socket_path(text: str) -> str:
    path = text.removeprefix("ipc://")
    if path in {"", "*", "@"}:
        raise ValueError(f"{text!r} names no socket: clients could not know which it is")
    if not path.startswith("@"):
        path = os.path.abspath(path)  # noqa: PTH100 - not resolved: that is the file's owner's
    length = len(os.fsencode(path))
    if length > _MAX_SOCKET_PATH:
        raise ValueError(f"{text!r} has {length} bytes, a socket's path at most {_MAX_SOCKET_PATH}")
    return path
