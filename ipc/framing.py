"""Messages between supervisor, zygote and workers: one JSON object per line over a socket pair.

Lines, so that a person can read a trace of them; JSON, because both ends may be of different
versions during a reload and unknown keys are harmless. A descriptor travels beside the line that
speaks of it (SCM_RIGHTS); Linux never merges two sends into one receive across a descriptor, so
descriptors arrive in the order of their lines, those of one line together. A receiver that has no
room for all of them gets some or none, and is told (MSG_CTRUNC); the line arrives all the same.
"""

import json
import socket
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_LINE = 1 << 20
"""Bytes of one message: a traceback fits, a runaway sender does not eat the memory."""

_MAX_FDS = 4


class FramingError(ValueError):
    """What came over the socket is not a line with one JSON object."""


class Received(NamedTuple):
    """What one receive has brought."""

    data: bytes
    """For a `LineDecoder`; none: the other end has closed."""
    fds: list[int]
    """Close-on-exec, and the caller's to close."""
    truncated: bool
    """There were more descriptors, for which there was no room; they are lost."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, ready to be sent. JSON escapes line breaks, so a message never contains one."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class LineDecoder:
    """Puts the pieces that a stream socket returns back together into messages."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def incomplete(self) -> bool:
        """Part of a message has come; an end of the stream now means that its sender died."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete with this piece. Raises FramingError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise FramingError(f"a message of more than {MAX_LINE} bytes has no end")
        return [_decode(line) for line in lines]


def _decode(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise FramingError(f"not a JSON object: {line[:80]!r} ({error})") from None
    if not isinstance(message, dict):
        raise FramingError(f"not a JSON object: {line[:80]!r}")
    return message


def send(sock: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one message over a blocking socket."""
    sock.sendall(encode(message))


def send_with_fd(sock: socket.socket, message: Mapping[str, Any], fd: int) -> None:
    """Sends one message and a copy of a descriptor beside it, over a blocking socket."""
    data = encode(message)
    sent = socket.send_fds(sock, [data], [fd])
    sock.sendall(data[sent:])


def receive(sock: socket.socket, size: int = 65536) -> Received:
    """What has come: descriptors are those of one message at most, the last that begins in it."""
    # Not socket.recv_fds(), which ignores its flags.
    space = socket.CMSG_SPACE(_MAX_FDS * array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return Received(data, fds.tolist(), bool(flags & socket.MSG_CTRUNC))
