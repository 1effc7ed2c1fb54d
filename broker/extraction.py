"""Taking the buffers out of arguments and return values, before JSON sees them."""

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

import pydantic
from pydantic_core import PydanticSerializationError, to_jsonable_python

_PLAIN = frozenset({str, int, float, bool, type(None)})
_SEQUENCES = (list, tuple, set, frozenset, deque)

Path = tuple[str | int, ...]
Frame = tuple[Path, bytes | bytearray | memoryview]


def take_out(value: Any, path: Path, frames: list[Frame]) -> Any:
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
        taken = take_out(item, (*path, step), frames)
        if taken is not item:
            changed[key] = taken
    return {**value, **changed} if changed else value


def _take_from_sequence(value: Any, path: Path, frames: list[Frame]) -> Any:
    changed = {}
    for index, item in enumerate(value):
        if type(item) in _PLAIN:
            continue
        taken = take_out(item, (*path, index), frames)
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
