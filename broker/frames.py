"""How messages and results look in the queue: JSON that any taskiq tool reads, the rest raw.

Without buffers in it, a message is exactly the JSON that taskiq's own formatters write. `bytes`,
`bytearray` and `memoryview` anywhere in the arguments or the return value leave a null behind and
follow as raw frames: no base64, no pickle, one copy (taskiq's formatter fails on bytes that are not
UTF-8). Where each frame belongs is told by its path, so no user's value can be mistaken for one.

    magic 4 | length of the table u32 | length of the envelope u64 | table | envelope | frames
    table: JSON, for each frame [kind, length, [path…]]

The magic begins with a byte that neither UTF-8 nor pickle nor a msgpack map begins with. A
serializer that was set with `with_serializer()` writes and reads the envelope instead of JSON.

Frames that are large together stay where they are and go beside the message, as the buffers of a
`Payload`, in the order of the table; then nothing follows the envelope. With CloudpickleSerializer
the arguments are one frame of the kind "pickle", with an empty path, and the buffers are those of
the pickle. The envelope stays JSON: task and labels can be read without running a pickle.
"""

import json
import logging
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers.json_serializer import JSONSerializer

from taskiq_supervise.broker.extraction import Frame, take_out
from taskiq_supervise.broker.payload import LARGE, Payload, buffers_of
from taskiq_supervise.broker.pickling import CloudpickleSerializer

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger("taskiq_supervise.broker")

MAGIC = b"\xf5TSF"
_HEAD = struct.Struct("<4sIQ")
_PICKLE = "pickle"
_KINDS: Mapping[str, type[bytes] | type[bytearray]] = {"bytes": bytes, "bytearray": bytearray}


def is_default(serializer: TaskiqSerializer) -> bool:
    """It is taskiq's JSON, which may as well be written and read by something faster."""
    return type(serializer) is JSONSerializer and serializer.default is None


def pack(
    values: dict[str, Any],
    where: tuple[str, ...],
    serializer: TaskiqSerializer,
    *,
    as_they_are: bool = False,
    beside: bool = False,
) -> bytes:
    """Serializes `values`; buffers below the keys `where` become frames.

    as_they_are: a serializer for more than JSON (pickle) is offered the objects themselves first.
    taskiq does so with results, while it turns the arguments of messages into JSON's types.
    beside: large frames may be the buffers of a Payload.
    Raises ValueError, or whatever the serializer raises, for what cannot be serialized.
    """
    if isinstance(serializer, CloudpickleSerializer):
        return _pack_pickled(values, where, serializer, beside=beside)
    if as_they_are and not isinstance(serializer, JSONSerializer):
        try:
            return serializer.dumpb(values)
        except Exception as error:
            logger.debug("%s leaves it to JSON: %s", type(serializer).__name__, error)
    frames: list[Frame] = []
    taken = dict(values)
    for key in where:
        taken[key] = take_out(values[key], (key,), frames)
    if is_default(serializer):
        envelope = _json(taken)
    else:
        try:
            jsonable = to_jsonable_python(taken)
        except (PydanticSerializationError, UnicodeError):
            # Objects that JSON does not know, for a serializer that does (pickle).
            return serializer.dumpb(values)
        envelope = serializer.dumpb(jsonable)
    if not frames:
        return envelope
    flat = [_flat(frame) for _, frame in frames]
    table = [
        ["bytearray" if type(frame) is bytearray else "bytes", len(frame), path]
        for frame, (path, _) in zip(flat, frames, strict=True)
    ]
    if beside and sum(map(len, flat)) >= LARGE:
        return Payload.of(_join(table, envelope), flat)
    return _join(table, envelope, *flat)


def _pack_pickled(
    values: dict[str, Any],
    where: tuple[str, ...],
    serializer: CloudpickleSerializer,
    *,
    beside: bool,
) -> bytes:
    buffers: list[memoryview] = []
    objects = {key: values[key] for key in where}
    stream = serializer.dump(objects, buffers if beside else None)
    envelope = _json({key: value for key, value in values.items() if key not in objects})
    return Payload.of(_join([[_PICKLE, len(stream), []]], envelope, stream), buffers)


def unpack(data: bytes, serializer: TaskiqSerializer) -> Any:
    """The reverse of `pack`.

    Raises ValueError for a truncated or invalid table of frames, and what unpickling raises.
    """
    if data[:4] != MAGIC:
        return _loads(data, serializer)
    if len(data) < _HEAD.size:
        raise ValueError(f"a message of {len(data)} bytes is too short for its head")
    _, table_size, envelope_size = _HEAD.unpack_from(data)
    begin = _HEAD.size + table_size
    end = begin + envelope_size
    if end > len(data):
        raise ValueError(f"{end} bytes of table and envelope in a message of {len(data)} bytes")
    table = _table(data[_HEAD.size : begin])
    buffers = buffers_of(data)
    if len(table) == 1 and table[0][0] == _PICKLE:
        return _unpack_pickled(data[begin:end], table[0][1], data[end:], buffers, serializer)
    values = _loads(data[begin:end], serializer)
    if buffers:
        _check_lengths(table, buffers, len(data) - end)
    frames = buffers or _inside(table, data, end)
    for number, ((kind, _, path), frame) in enumerate(zip(table, frames, strict=True)):
        _put(number, values, path, _KINDS[kind](frame))
    return values


def _unpack_pickled(
    envelope: bytes,
    length: int,
    stream: bytes,
    buffers: "tuple[Buffer, ...]",
    serializer: TaskiqSerializer,
) -> Any:
    if not isinstance(serializer, CloudpickleSerializer):
        # Unpickling runs code, so it is only for who has asked for it.
        raise ValueError(
            f"it was sent with CloudpickleSerializer and is read with {type(serializer).__name__}: "
            "give the brokers at both sides the same serializer"
        )
    if len(stream) != length:
        raise ValueError(f"a pickle of {length} bytes in {len(stream)} bytes")
    return {**json.loads(envelope), **serializer.load(stream, map(_writable, buffers))}


def _writable(buffer: "Buffer") -> "Buffer":
    """Arrays can be changed in place, however large: small ones get memory of their own for it."""
    return memoryview(bytearray(buffer)) if memoryview(buffer).readonly else buffer


def _inside(table: "list[_Entry]", data: bytes, begin: int) -> list[bytes]:
    frames = []
    for number, (_, length, _) in enumerate(table):
        if length > len(data) - begin:
            raise ValueError(
                f"frame {number} of {length} bytes begins at {begin} of {len(data)} bytes"
            )
        frames.append(data[begin : begin + length])
        begin += length
    if begin != len(data):
        raise ValueError(f"{len(data) - begin} bytes follow the last frame")
    return frames


def _check_lengths(table: "list[_Entry]", buffers: "tuple[Buffer, ...]", rest: int) -> None:
    lengths = [length for _, length, _ in table]
    found = [memoryview(buffer).nbytes for buffer in buffers]
    if found != lengths or rest:
        raise ValueError(
            f"frames of {lengths} bytes were sent, buffers of {found} bytes arrived, "
            f"and {rest} bytes follow the envelope"
        )


def _join(table: list[Any], envelope: bytes, *frames: "Buffer") -> bytes:
    raw = json.dumps(table).encode()
    return b"".join([_HEAD.pack(MAGIC, len(raw), len(envelope)), raw, envelope, *frames])


def _json(values: dict[str, Any]) -> bytes:
    try:
        return to_json(values)
    except PydanticSerializationError as error:
        # Lone surrogates, which Python's JSON writes as escapes.
        if "surrogates" not in str(error):
            raise
        return json.dumps(to_jsonable_python(values)).encode()


def _loads(data: bytes, serializer: TaskiqSerializer) -> Any:
    if is_default(serializer) or isinstance(serializer, CloudpickleSerializer):
        return json.loads(data)
    return serializer.loadb(data)


def _flat(buffer: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """Its bytes in C order, without a copy where they lie so."""
    if not isinstance(buffer, memoryview):
        return buffer
    if not buffer.c_contiguous or not buffer.nbytes:
        return buffer.tobytes()
    try:
        return buffer.cast("B")
    except TypeError:  # of records, which Python has no cast for
        return buffer.tobytes()


_Entry = tuple[str, int, list[str | int]]


def _table(data: bytes) -> list[_Entry]:
    try:
        table = json.loads(data)
    except ValueError as error:
        raise ValueError(f"the table of frames is not JSON: {error}") from None
    if not isinstance(table, list):
        raise ValueError(f"the table of frames is a {type(table).__name__}, not a list")
    entries = [_entry(number, entry) for number, entry in enumerate(table)]
    if len(entries) > 1 and any(kind == _PICKLE for kind, _, _ in entries):
        raise ValueError(f"a pickle stands beside other frames: {entries!r}")
    return entries


def _entry(number: int, entry: Any) -> _Entry:
    match entry:
        case [str(kind), int(length), [_, *_] as path] if kind in _KINDS and length >= 0:
            if all(type(step) in (str, int) for step in path):
                return kind, length, path
        case ["pickle", int(length), []]:
            return _PICKLE, length, []
    raise ValueError(f"frame {number} is described by {entry!r}, not by [kind, length, [path…]]")


def _put(number: int, values: Any, path: list[str | int], frame: bytes | bytearray) -> None:
    *steps, last = path
    try:
        for step in steps:
            values = values[step]
        if values[last] is not None:
            raise ValueError(f"frame {number} leads to {path}, where a value is already")
        values[last] = frame
    except (LookupError, TypeError):
        raise ValueError(f"frame {number} leads to {path}, which is not in the message") from None
