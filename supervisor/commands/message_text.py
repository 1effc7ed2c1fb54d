"""What a message says, as far as that can be read without running anything from it.

Commands look at other people's messages: they never unpickle, and they do not need the application.
taskiq's JSON and the frames of broker/frames.py are read in full; in a pickle only the names of its
opcodes are looked at, which is enough for the task's name. The broker's own formatter is not
imported, because it brings taskiq and pydantic with it (a second, for one line of text).
"""

from __future__ import annotations

import json
import pickletools
import reprlib
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\xf5TSF"
"""As in broker/frames.py."""

_HEAD = struct.Struct("<4sIQ")  # magic, bytes of the table, bytes of the envelope
_PICKLE_PROTOCOLS = range(2, 6)
_PICKLE_HEAD = 64 * 1024
_PICKLE_OPCODES = 2_000
"""How far into a pickle the task's name is looked for: it is one of the first entries."""

_PREVIEW = 240
"""Bytes of a payload that is none of the known formats, to be shown."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Stands where a buffer is in the arguments. size: bytes."""

    kind: str
    size: int

    def __repr__(self) -> str:
        return f"<{self.kind}, {self.size} bytes>"


@dataclass(frozen=True, slots=True)
class MessageText:
    """A message's content.

    Attributes:
        format: json, frames (JSON with raw frames), pickle (its arguments are), or unknown.
        task_name: None when it cannot be told.
        labels, args, kwargs: None unless they can be read; buffers in them are Frames.
        preview: what cannot be read: its size, or its beginning as a Python literal.
    """

    format: str
    task_name: str | None = None
    labels: dict[str, Any] | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    preview: str | None = None


def read_message(payload: bytes) -> MessageText:
    """Never fails: what is not understood is `unknown`."""
    if payload[:4] == MAGIC:
        return _read_frames(payload)
    if payload[:1] == b"\x80" and len(payload) > 1 and payload[1] in _PICKLE_PROTOCOLS:
        return _read_pickle(payload, payload)
    return _read_json(payload) or MessageText("unknown", preview=_preview(payload))


def short_arguments(text: MessageText) -> str | None:
    """The arguments as they stand in a call, long ones cut; None when they are not known."""
    if text.args is None or text.kwargs is None:
        return None
    shown = [_shorten.repr(value) for value in text.args[:_ARGUMENTS_SHOWN]]
    rest = max(0, len(text.args) - _ARGUMENTS_SHOWN)
    room = _ARGUMENTS_SHOWN - len(shown)
    named = _assignments(text.kwargs)
    rest += max(0, len(named) - room)
    shown += named[:room]
    if rest:
        shown.append(f"… {rest} more")
    return ", ".join(shown)


def short_labels(text: MessageText) -> str | None:
    return None if text.labels is None else ", ".join(_assignments(text.labels))


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{name}={_shorten.repr(value)}" for name, value in values.items()]


def jsonable(value: Any) -> Any:
    """`value` with its Frames as objects that JSON can carry."""
    if isinstance(value, Frame):
        return {"type": value.kind, "size": value.size}
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    return value


def _read_json(data: bytes) -> MessageText | None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("task_name"), str):
        return None
    labels, args, kwargs = values.get("labels"), values.get("args"), values.get("kwargs")
    return MessageText(
        "json",
        values["task_name"],
        labels if isinstance(labels, dict) else None,
        args if isinstance(args, list) else None,
        kwargs if isinstance(kwargs, dict) else None,
    )


def _read_frames(payload: bytes) -> MessageText:
    """The envelope is JSON, or what another serializer made of it; the frames are only named."""
    if len(payload) < _HEAD.size:
        return MessageText("unknown", preview=_preview(payload))
    _, table_size, envelope_size = _HEAD.unpack_from(payload)
    begin = _HEAD.size + table_size
    envelope = payload[begin : begin + envelope_size]
    found = _read_json(envelope)
    if found is None:
        if envelope[:1] == b"\x80":
            return _read_pickle(envelope, payload)
        return MessageText("unknown", preview=_preview(payload))
    pickled = None
    for path, frame in _frames(payload[_HEAD.size : begin]):
        if path:
            _place({"args": found.args, "kwargs": found.kwargs}, path, frame)
        else:
            pickled = repr(frame)
    return replace(found, format="pickle" if pickled else "frames", preview=pickled)


def _frames(table: bytes) -> Iterator[tuple[list[Any], Frame]]:
    try:
        entries = json.loads(table)
    except (ValueError, RecursionError):
        return
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case [str(kind), int(size), list(path)]:
                yield path, Frame(kind, size)


def _place(values: Any, path: list[Any], frame: Frame) -> None:
    """Put the frame where it belongs; a path that leads nowhere is the worker's affair."""
    *steps, last = path
    try:
        for step in steps:
            values = values[step]
        values[last] = frame
    except (LookupError, TypeError):
        return


def _read_pickle(data: bytes, payload: bytes) -> MessageText:
    return MessageText("pickle", _name_in_pickle(data), preview=_preview(payload))


def _name_in_pickle(data: bytes) -> str | None:
    """The text that follows the text "task_name", by the opcodes alone: nothing is executed."""
    is_next = False
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data[:_PICKLE_HEAD])):
            if number > _PICKLE_OPCODES:
                break
            if "UNICODE" not in opcode.name:
                continue
            if is_next:
                return str(argument)
            is_next = argument == "task_name"
    except Exception:
        # A cut or hostile pickle can fail genops in any way (ValueError, MemoryError, Unicode…).
        return None
    return None


def _preview(data: bytes) -> str:
    cut = "…" if len(data) > _PREVIEW else ""
    return f"{data[:_PREVIEW]!r}{cut}"


class _Shorten(reprlib.Repr):
    """A value in a line: a few elements, a few levels."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlist = self.maxdict = 6
        self.maxlevel = 4


_shorten = _Shorten()
_ARGUMENTS_SHOWN = 12
