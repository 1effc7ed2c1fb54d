"""How a payload and its out-of-band buffers lie in the queue.

Small ones lie together in the slot or in a block. What is larger than the largest block goes into a
file beside the segment, which is mapped by whoever reads it; the block then holds an envelope that
says how long the parts are. The format number that travels with each payload says which it is.

    envelope and frame alike: parts u32 | flags u32 | bytes of each part u64 … | payload | …
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import QueueError, SegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

PLAIN, FRAMED, IN_FILE = 0, 1, 2

_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_PAYLOAD_IN_FILE, _CHECKED = 1, 2
_ALIGNMENT = 16
"""Of framed buffers: what numpy wants of its elements. Those in files begin on pages or lines."""


def flat(buffer: Buffer) -> memoryview:
    """Its bytes, without a copy when they lie together."""
    view = memoryview(buffer)
    if not view.nbytes or not view.c_contiguous:
        return memoryview(view.tobytes())
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def arrange(
    payload: Buffer, buffers: Sequence[Buffer], limit: int, *, checked: bool = False
) -> tuple[int, Buffer, list[memoryview], int]:
    """What to store: format, at most `limit` bytes for the segment, views for a file, size in all.

    checked: with a checksum of what goes into the file. QueueError: too many buffers for one
    message.
    """
    size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
    if not buffers and size <= limit:
        return PLAIN, payload, [], size
    views = [flat(buffer) for buffer in buffers]
    total = size + sum(view.nbytes for view in views)
    if total + _room(len(views)) <= limit:
        return FRAMED, _frame(payload, views), [], total
    head = flat(payload)
    outside = size + _room(len(views)) > limit
    lengths = [size, *(view.nbytes for view in views)]
    files = [head, *views] if outside else views
    flags = (_PAYLOAD_IN_FILE if outside else 0) | (_CHECKED if checked else 0)
    envelope = _head(lengths, flags)
    if not outside:
        envelope += head
    if checked:
        envelope += _CHECKSUM.pack(_checksum(files))
    if len(envelope) > limit:
        raise QueueError(f"{len(views)} buffers are more than one message can have")
    return IN_FILE, envelope, files, total


def assemble(
    form: int, stored: bytes, load: Callable[[Sequence[int]], tuple[memoryview, ...]]
) -> tuple[bytes, tuple[memoryview, ...]]:
    """Payload and buffers. load: maps the file's parts, given their lengths. SegmentError: the
    bytes are not what was written."""
    if form == PLAIN:
        return stored, ()
    lengths, flags, at = _parse(stored)
    if form == FRAMED:
        view = memoryview(bytearray(stored))  # to be written to, as what lies in files is
        parts: list[memoryview] = []
        for number, length in enumerate(lengths):
            at += -at % _ALIGNMENT if number else 0
            if at + length > len(stored):
                raise SegmentError(f"a frame of {len(stored)} bytes ends before its part {number}")
            parts.append(view[at : at + length])
            at += length
        return bytes(parts[0]), tuple(parts[1:])
    if form != IN_FILE:
        raise SegmentError(f"payload format {form} is not one of this version")
    if flags & _PAYLOAD_IN_FILE:
        head, *buffers = load(lengths)
        return bytes(head), tuple(buffers)
    return stored[at : at + lengths[0]], load(lengths[1:])


def file_parts(envelope: bytes) -> list[int]:
    """Lengths of what lies in the file."""
    lengths, flags, _ = _parse(envelope)
    return lengths if flags & _PAYLOAD_IN_FILE else lengths[1:]


def is_whole(envelope: bytes, parts: Sequence[memoryview]) -> bool:
    """The file's parts are what was written, as far as the envelope tells."""
    _, flags, _ = _parse(envelope)
    if not flags & _CHECKED:
        return True
    [checksum] = _CHECKSUM.unpack(envelope[-_CHECKSUM.size :])
    return bool(checksum == _checksum(parts))


def _checksum(parts: Sequence[memoryview]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _room(buffers: int) -> int:
    return _HEAD.size + _CHECKSUM.size + (buffers + 1) * (_LENGTH.size + _ALIGNMENT)


def _head(lengths: Sequence[int], flags: int) -> bytes:
    return _HEAD.pack(len(lengths), flags) + b"".join(_LENGTH.pack(length) for length in lengths)


def _frame(payload: Buffer, views: list[memoryview]) -> bytearray:
    parts = [flat(payload), *views]
    frame = bytearray(_head([part.nbytes for part in parts], 0))
    for number, part in enumerate(parts):
        if number:
            frame += bytes(-len(frame) % _ALIGNMENT)
        frame += part
    return frame


def _parse(stored: bytes) -> tuple[list[int], int, int]:
    if len(stored) < _HEAD.size:
        raise SegmentError(f"an envelope of {len(stored)} bytes is too short")
    count, flags = _HEAD.unpack_from(stored)
    at = _HEAD.size + count * _LENGTH.size
    if not count or at > len(stored):
        raise SegmentError(f"an envelope of {len(stored)} bytes cannot list {count} parts")
    return (
        [
            _LENGTH.unpack_from(stored, _HEAD.size + index * _LENGTH.size)[0]
            for index in range(count)
        ],
        flags,
        at,
    )
