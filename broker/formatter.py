"""How messages and results look in the queue: JSON that any taskiq tool reads, bytes raw behind it.

Without buffers in it, a message is exactly the JSON that taskiq's own formatters write. `bytes`,
`bytearray` and `memoryview` anywhere in the arguments or the return value leave a null behind and
follow as raw frames: no base64, no pickle, one copy (taskiq's formatter fails on bytes that are not
UTF-8). Where each frame belongs is told by its path, so no user's value can be mistaken for one.

    magic 4 | length of the table u32 | length of the envelope u64 | table | envelope | frames
    table: JSON, for each frame [kind, length, [path…]]

The magic begins with a byte that neither UTF-8 nor pickle nor a msgpack map begins with. A
serializer that was set with `with_serializer()` writes and reads the envelope instead of JSON.
"""

import base64
import json
import logging
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.serializers.json_serializer import JSONSerializer

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

logger = logging.getLogger("taskiq_supervise.broker")

MAGIC = b"\xf5TSF"
_HEAD = struct.Struct("<4sIQ")
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SEQUENCES = (list, tuple, set, frozenset, deque)
_KINDS: Mapping[str, type[bytes] | type[bytearray]] = {"bytes": bytes, "bytearray": bytearray}

Path = tuple[str | int, ...]
Frame = tuple[Path, bytes | bytearray | memoryview]


class FrameFormatter(TaskiqFormatter):
    """The default formatter of SharedMemoryBroker; works on any taskiq broker."""

    def __init__(self, broker: "AsyncBroker") -> None:
        self.broker = broker

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raises ValueError (pydantic's, too) for arguments that cannot be serialized."""
        values = {
            "task_id": message.task_id,
            "task_name": message.task_name,
            "labels": message.labels,
            "labels_types": message.labels_types,
            "args": message.args,
            "kwargs": message.kwargs,
        }
        if any(type(label) is bytes for label in message.labels.values()):
            values["labels"] = {key: _label(label) for key, label in message.labels.items()}
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=pack(values, ("args", "kwargs"), self.broker.serializer),
            labels=message.labels,
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        """Raises ValueError (pydantic's, too) for what is not a message."""
        if message[:4] != MAGIC and is_default(self.broker.serializer):
            try:
                return TaskiqMessage.model_validate_json(message)
            except pydantic.ValidationError:
                # Lone surrogates (a file name that is not UTF-8) are JSON for Python's parser
                # only; whatever else is wrong is said by the attempt below.
                return TaskiqMessage.model_validate(json.loads(message))
        return TaskiqMessage.model_validate(unpack(message, self.broker.serializer))


def _label(label: object) -> object:
    """As taskiq sends it: a message that is sent again has its labels parsed already."""
    return base64.b64encode(label).decode() if isinstance(label, bytes) else label


def is_default(serializer: TaskiqSerializer) -> bool:
    """It is taskiq's JSON, which may as well be written and read by something faster."""
    return type(serializer) is JSONSerializer and serializer.default is None


def pack(
    values: dict[str, Any],
    where: tuple[str, ...],
    serializer: TaskiqSerializer,
    *,
    as_they_are: bool = False,
) -> bytes:
    """Serializes `values`; buffers below the keys `where` become frames.

    as_they_are: a serializer for more than JSON (pickle) is offered the objects themselves first.
    taskiq does so with results, while it turns the arguments of messages into JSON's types.
    Raises ValueError, or whatever the serializer raises, for what cannot be serialized.
    """
    if as_they_are and not isinstance(serializer, JSONSerializer):
        try:
            return serializer.dumpb(values)
        except Exception as error:
            logger.debug("%s leaves it to JSON: %s", type(serializer).__name__, error)
    frames: list[Frame] = []
    taken = dict(values)
    for key in where:
        taken[key] = _take(values[key], (key,), frames)
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
    table = json.dumps(
        [
            ["bytearray" if type(frame) is bytearray else "bytes", memoryview(frame).nbytes, path]
            for path, frame in frames
        ],
    ).encode()
    head = _HEAD.pack(MAGIC, len(table), len(envelope))
    return b"".join([head, table, envelope, *(_flat(frame) for _, frame in frames)])


def unpack(data: bytes, serializer: TaskiqSerializer) -> Any:
    """The reverse of `pack`. Raises ValueError for a truncated or invalid table of frames."""
    if data[:4] != MAGIC:
        return _loads(data, serializer)
    if len(data) < _HEAD.size:
        raise ValueError(f"a message of {len(data)} bytes is too short for its head")
    _, table_size, envelope_size = _HEAD.unpack_from(data)
    begin = _HEAD.size + table_size
    end = begin + envelope_size
    if end > len(data):
        raise ValueError(f"{end} bytes of table and envelope in a message of {len(data)} bytes")
    values = _loads(data[begin:end], serializer)
    view = memoryview(data)
    for number, entry in enumerate(_table(data[_HEAD.size : begin])):
        kind, length, path = _entry(number, entry)
        if length > len(data) - end:
            raise ValueError(
                f"frame {number} of {length} bytes begins at {end} of {len(data)} bytes"
            )
        _put(number, values, path, kind(view[end : end + length]))
        end += length
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the last frame")
    return values


def _json(values: dict[str, Any]) -> bytes:
    try:
        return to_json(values)
    except PydanticSerializationError as error:
        # Lone surrogates, which Python's JSON writes as escapes.
        if "surrogates" not in str(error):
            raise
        return json.dumps(to_jsonable_python(values)).encode()


def _loads(data: bytes, serializer: TaskiqSerializer) -> Any:
    return json.loads(data) if is_default(serializer) else serializer.loadb(data)


def _flat(buffer: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    if isinstance(buffer, memoryview) and not buffer.c_contiguous:
        return buffer.tobytes()
    return buffer


def _take(value: Any, path: Path, frames: list[Frame]) -> Any:
    """`value` without its buffers, which go to `frames`; the very same object if it has none."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        frames.append((path, value))
        return None
    if isinstance(value, dict):
        return _take_from_dict(value, path, frames)
    if isinstance(value, _SEQUENCES):
        return _take_from_sequence(value, path, frames)
    if isinstance(value, pydantic.BaseModel):
        return _take_from_model(value, path, frames)
    if is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "__pydantic_serializer__"):
            return value
        whole = {field.name: getattr(value, field.name) for field in fields(value)}
        taken = _take_from_dict(whole, path, frames)
        return value if taken is whole else taken
    return value


def _take_from_dict(value: dict[Any, Any], path: Path, frames: list[Frame]) -> dict[Any, Any]:
    changed = {}
    for key, item in value.items():
        if type(item) in _PLAIN:
            continue
        # The path leads through the envelope, where JSON has turned every key into a string.
        step = key if isinstance(key, str) else str(to_jsonable_python({key: None}).popitem()[0])
        taken = _take(item, (*path, step), frames)
        if taken is not item:
            changed[key] = taken
    return {**value, **changed} if changed else value


def _take_from_sequence(value: Any, path: Path, frames: list[Frame]) -> Any:
    changed = {}
    for index, item in enumerate(value):
        if type(item) in _PLAIN:
            continue
        taken = _take(item, (*path, index), frames)
        if taken is not item:
            changed[index] = taken
    if not changed:
        return value
    return [changed.get(index, item) for index, item in enumerate(value)]


def _take_from_model(value: pydantic.BaseModel, path: Path, frames: list[Frame]) -> Any:
    try:
        return value.model_dump(mode="json")
    except (PydanticSerializationError, UnicodeError):
        # Bytes that are not UTF-8 are the usual reason.
        return _take_from_dict(value.model_dump(), path, frames)


def _table(data: bytes) -> list[Any]:
    try:
        table = json.loads(data)
    except ValueError as error:
        raise ValueError(f"the table of frames is not JSON: {error}") from None
    if not isinstance(table, list):
        raise ValueError(f"the table of frames is a {type(table).__name__}, not a list")
    return table


def _entry(number: int, entry: Any) -> tuple[type[bytes] | type[bytearray], int, list[str | int]]:
    match entry:
        case [str(kind), int(length), [_, *_] as path] if kind in _KINDS and length >= 0:
            if all(type(step) in (str, int) for step in path):
                return _KINDS[kind], length, path
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
