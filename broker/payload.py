"""Bytes with buffers beside them: what is large goes into shared memory without being joined."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from taskiq_supervise.ipc import PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer, Self

LARGE = 64 * 1024
"""Bytes from which on a buffer of its own is worth more than one copy."""

_MAY_NOT_FIT = 1024 * 1024
"""Less fits everywhere; asking the file system takes a microsecond."""


class Payload(bytes):
    """A message or a result. Whoever knows nothing of buffers sees bytes.

    Attributes:
        buffers: what follows the bytes, in order; the formatter knows where each belongs.
    """

    buffers: "tuple[Buffer, ...]" = ()

    @classmethod
    def of(cls, data: bytes, buffers: "Sequence[Buffer]") -> "bytes | Self":
        """The bytes themselves if there are no buffers."""
        if not buffers:
            return data
        payload = cls(data)
        payload.buffers = tuple(buffers)
        return payload


def buffers_of(data: bytes) -> "tuple[Buffer, ...]":
    return data.buffers if isinstance(data, Payload) else ()


def size_of(data: bytes) -> int:
    """Bytes, those of the buffers included."""
    return len(data) + sum(memoryview(buffer).nbytes for buffer in buffers_of(data))


def check_fits(size: int, folder: Path) -> None:
    """Raises PayloadTooLarge for what could not lie in a queue's folder, were it empty."""
    if size < _MAY_NOT_FIT:
        return
    filesystem = os.statvfs(folder)
    room = filesystem.f_blocks * filesystem.f_frsize
    if size > room:
        raise PayloadTooLarge(f"the file system of {folder} has {room} bytes")
